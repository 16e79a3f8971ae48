"""The export that is served: found, loaded once a worker, compared with its probes, warmed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import UserError, nearest
from trainer.export import ExportedModel, load
from trainer.export.devices import assigned_gpus, count_gpus, device_name
from trainer.export.formats import FORMATS
from trainer.export.manifest import parse_manifest
from trainer.export.probes import Probes, check_probes, read_probes
from trainer.export.processing import ImageInputs, LabelOutputs, NoiseInputs, TextInputs
from trainer.run.files import EXPORT_DIR, MANIFEST_FILE
from trainer.run.opening import open_stored_run
from trainer.serve.config import ServeConfig


@dataclass(frozen=True, eq=False)
class ServedModel:
    """An export, ready to answer. copies: one a worker, so that each has threads and buffers of its own. gpus: of the
    copies; None is the CPU.
    """

    folder: Path
    copies: Sequence[ExportedModel]
    gpus: Sequence[int | None]

    @property
    def exported(self) -> ExportedModel:
        """Any of the copies, for what they share."""
        return self.copies[0]

    @property
    def kind(self) -> str:
        """What an input is: "text", "text_pair", "image" or "noise"."""
        inputs = self.exported.processing.inputs
        if isinstance(inputs, TextInputs):
            return "text" if inputs.columns.text_pair is None else "text_pair"
        return {ImageInputs: "image", NoiseInputs: "noise"}[type(inputs)]

    @property
    def labels(self) -> list[str] | None:
        """Names of classes; None where a result is no class."""
        outputs = self.exported.processing.outputs
        return outputs.names if isinstance(outputs, LabelOutputs) else None

    @property
    def computes_padding(self) -> bool:
        """See Manifest."""
        return self.exported.manifest.computes_padding

    def description(self) -> dict[str, Any]:
        """What GET /model says of it."""
        manifest = self.exported.manifest
        parity = manifest.parity
        metric = None
        if parity.metric is not None:
            metric = {"name": f"{parity.measured_on}/{parity.metric}", "value": parity.of_export, "run": parity.of_run}
        return {
            "task": manifest.task,
            "kind": self.kind,
            "labels": self.labels,
            "format": manifest.format,
            "source_run": Path(str(manifest.run["directory"])).name,
            "created": manifest.created,
            "devices": [device_name(gpu) for gpu in self.gpus],
            "metric": metric,
        }

    def compute(self, worker: int, prepared: Sequence[Any]) -> list[dict[str, Any]]:
        """Results of one batch of prepared inputs."""
        model = self.copies[worker]
        return model.postprocess(model.forward(model.processing.inputs.collated(prepared)))


def load_served(folder: Path, config: ServeConfig) -> ServedModel:
    """An export that computes here what it computed when it was proved, warmed up.

    Raises: UserError: it is missing, damaged or of native code that is not allowed, there are not enough GPUs, or its
    outputs differ.
    """
    name = parse_manifest(folder).format
    gpus = assigned_gpus(config.workers, config.device, name, 0 if config.device == "cpu" else count_gpus(name))
    served = ServedModel(folder, [load(folder, config.allow_native_code, gpu) for gpu in gpus], gpus)
    probes = read_probes(folder, served.exported)
    try:
        for model in served.copies:
            check_probes(folder, model, probes)
        _warm_up(served, probes, config.max_batch)
    except UserError:
        raise
    except Exception as error:  # whatever a runtime raises on an export that does not fit itself
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: fails on its probes: {type(error).__name__}: {reason}") from error
    return served


def _warm_up(served: ServedModel, probes: Probes, max_batch: int) -> None:
    # A runtime chooses kernels and allocates memory for the shapes that it sees first.
    ends = served.exported.processing.inputs.prepared([probes.inputs[0], probes.inputs[-1]])
    for worker in range(len(served.copies)):
        for size in {1, 2, max_batch}:
            for prepared in ends:
                served.compute(worker, [prepared] * size)


def find_export(config: ServeConfig) -> Path:
    """The folder to serve. Raises: UserError: there is none, it is unclear which, or native code is not allowed."""
    if (config.run is None) == (config.export is None):
        raise UserError("serve: needs run=DIR or export=DIR, as in serve run=outputs/bert/NAME")
    if config.export is not None:
        if config.format is not None:
            raise UserError(f"format={config.format}: has an effect only with run=DIR; export=DIR is one format")
        folder = Path(config.export)
        if not (folder / MANIFEST_FILE).is_file():
            raise UserError(f"export={folder}: no export; {MANIFEST_FILE} is missing", "it is a folder DIR/export/NAME")
        return folder
    run_dir = Path(str(config.run))
    open_stored_run(run_dir)
    present = [name for name in FORMATS if (run_dir / EXPORT_DIR / name / MANIFEST_FILE).is_file()]
    if config.format is not None:
        if config.format not in FORMATS:
            raise UserError(f"format={config.format}: no such format; {nearest(config.format, list(FORMATS))}")
        if config.format not in present:
            raise _not_exported(run_dir, config.format)
        return run_dir / EXPORT_DIR / config.format
    # Native code is served only where its format is named.
    present = sorted((name for name in present if not FORMATS[name].is_native), key=lambda name: name != "onnx")
    if not present:
        raise _not_exported(run_dir, "onnx")
    return run_dir / EXPORT_DIR / present[0]


def _not_exported(run_dir: Path, format_name: str) -> UserError:
    return UserError(
        f"run={run_dir}: has no export in the format {format_name}, and only what is proved equal to the run is served",
        f"first: python -m trainer export run={run_dir} format={format_name}",
    )

"""The verb export: a trained model in formats that need no training code, each proved equal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.deploy.targets import requested_targets
from trainer.errors import EXIT_BUG, EXIT_DONE, UserError
from trainer.export.formats import requested
from trainer.run.opening import open_stored_run
from trainer.run.stored_config import StoredConfig
from trainer.verbs.stored_run import changed_config, own_arguments, refuse_unknown

if TYPE_CHECKING:
    import torch

    from trainer.export.gate import Gate
    from trainer.export.source import Source
    from trainer.inference import Evaluation, ExportableInference


def export(words: Sequence[str]) -> int:
    """Export a run; `trainer export --help` describes the words.

    Returns: exit code; 1 where a format is not equal. Raises: UserError: no such run or format, or wrong words.
    """
    request = _parse(words)
    code = _write(request) if request.formats else EXIT_DONE
    if request.targets and code == EXIT_DONE:
        from trainer.deploy.source import read_source
        from trainer.deploy.write import deploy

        for place in deploy(read_source(request.run_dir, request.formats), request.targets):
            print(f"{place.name}:\n  {place}")
    return code


@dataclass(frozen=True)
class _Request:
    """What the words ask for. data_is_named: a word says where the data is now."""

    run_dir: Path
    formats: list[str]
    targets: list[str]
    stored: StoredConfig
    data_is_named: bool


def _write(request: _Request) -> int:
    """Write the formats. Returns: exit code; 1 where one is not equal."""
    from trainer.export.gate import NotEqual
    from trainer.export.write import export_format

    run_dir = request.run_dir
    source, gate = open_run(run_dir, request.stored, request.data_is_named)
    if gate.evaluation is None:
        print(f"note: outputs are compared on example inputs: {gate.reason}", file=sys.stderr)
    failed = False
    for name in request.formats:
        try:
            place, manifest = export_format(source, gate, name)
        except NotEqual as reason:
            kept = "; the earlier export is kept" if (run_dir / "export" / name).exists() else ""
            print(f"{name}: not exported: {reason}{kept}", file=sys.stderr)
            failed = True
            continue
        parity = manifest.parity
        size_mib = sum(file.size for file in manifest.files.values()) / 2**20
        text = f"outputs within {parity.largest:.2g} (mean {parity.mean:.2g}) on {parity.samples} inputs"
        if parity.of_run is not None and parity.of_export is not None:
            text += f", {parity.measured_on}/{parity.metric} {parity.of_export:.4f} (run {parity.of_run:.4f})"
        print(f"{name}: {text}, {size_mib:.1f} MiB\n  {place}")
    return EXIT_BUG if failed else EXIT_DONE


def _parse(words: Sequence[str]) -> _Request:
    directories = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    if len(directories) != 1:
        raise UserError("export: needs run=DIR, as in export run=outputs/cnn/NAME format=onnx")
    run_dir = Path(directories[0])
    open_stored_run(run_dir)
    rest = [word for word in words if not word.startswith("run=")]
    own = refuse_unknown("export", own_arguments("export", rest), ["format", "deploy"])
    if not own.keys() & {"format", "deploy"}:
        raise UserError("export: needs format=NAME, as in format=onnx or format=safetensors,onnx_int8")
    formats = requested(own["format"]) if "format" in own else []
    targets = requested_targets(own.get("deploy", ""))
    stored = changed_config("export", run_dir, rest)
    return _Request(run_dir, formats, targets, stored, any(word.startswith("data.") for word in rest))


def open_run(run_dir: Path, stored: StoredConfig, data_is_named: bool) -> tuple[Source, Gate]:
    """The run's network in float32, and what exports of it are compared on."""
    import torch

    from trainer.export.gate import Gate
    from trainer.export.source import Source
    from trainer.inference import ExportableInference, float32

    device = torch.device("cpu")
    model = stored.task.load_inference(float32(stored.config), run_dir, device)
    if not isinstance(model, ExportableInference):
        raise UserError(f"task={stored.task.name}: does not say how it is exported; see docs/exporting.md")
    evaluation, reason, name = None, None, "example inputs"
    try:
        evaluation, name = _evaluation(run_dir, stored, model, device)
    except UserError as error:
        if data_is_named:
            raise
        reason = error.lines[0]
    gate = Gate(model, evaluation, name, reason, stored.config.batch.eval_size)
    return Source(model, run_dir, () if evaluation is None else evaluation.calibration), gate


def _evaluation(
    run_dir: Path, stored: StoredConfig, model: ExportableInference, device: torch.device
) -> tuple[Evaluation, str]:
    """The run's evaluation data and the name of its set. Raises: UserError: the data is not available."""
    from trainer.inference import evaluated_set

    data = stored.task.build_data(model.config)
    data.read_input_spec(run_dir)
    data.load(device)
    return model.evaluation(data), evaluated_set(model.config, data)[0]

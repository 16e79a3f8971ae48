"""The verb export: a trained model in formats that need no training code, each proved equal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import EXIT_BUG, EXIT_DONE, UserError
from trainer.export.formats import requested
from trainer.run.record import Record
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
    run_dir, names, stored, data_is_named = _parse(words)
    from trainer.export.gate import NotEqual
    from trainer.export.write import export_format

    source, gate = open_run(run_dir, stored, data_is_named)
    if gate.evaluation is None:
        print(f"note: outputs are compared on example inputs: {gate.reason}", file=sys.stderr)
    failed = False
    for name in names:
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


def _parse(words: Sequence[str]) -> tuple[Path, list[str], StoredConfig, bool]:
    """The run, the formats, the run's configuration, and whether a word says where the data is."""
    directories = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    if len(directories) != 1:
        raise UserError("export: needs run=DIR, as in export run=outputs/cnn/NAME format=onnx")
    run_dir = Path(directories[0])
    Record(run_dir).read()
    rest = [word for word in words if not word.startswith("run=")]
    own = refuse_unknown("export", own_arguments("export", rest), ["format"])
    if "format" not in own:
        raise UserError("export: needs format=NAME, as in format=onnx or format=safetensors,onnx_int8")
    names = requested(own["format"])
    stored = changed_config("export", run_dir, rest)
    return run_dir, names, stored, any(word.startswith("data.") for word in rest)


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

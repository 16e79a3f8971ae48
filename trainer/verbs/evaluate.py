"""The verb eval: metrics of a trained model on its own data or on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from trainer.checkpoint.choose import find_checkpoint, weights_file
from trainer.config.identity import hash8, identity
from trainer.errors import EXIT_DONE, UserError, shown
from trainer.observe.bar import open_console
from trainer.run.files import CHECKPOINTS_DIR, EVALUATION_FILE, MODEL_FILE, write_json
from trainer.run.stored_config import read_stored_config
from trainer.verbs.prepare import PreparedRun
from trainer.verbs.stored_run import on_stored_run, refuse_unknown


def evaluate(words: Sequence[str]) -> int:
    """Evaluate a run; `trainer eval --help` describes the words. Returns: exit code. Raises: UserError."""
    on_stored_run("eval", words, evaluate_on_rank)
    return EXIT_DONE


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    weights: the file. label: the checkpoint as the user knows it; None for the run's final weights.
    changed: what differs from the run's own configuration and changes numbers, by dotted key.
    """

    weights: Path
    label: str | None
    changed: Mapping[str, Any]

    def result_file(self, run_dir: Path, data_name: str) -> Path:
        """eval.json for the run itself; for other weights or data a file of their own beside it."""
        if self.label is None and not self.changed:
            return run_dir / EVALUATION_FILE
        parts = [Path(EVALUATION_FILE).stem]
        parts += [data_name] if any(key.startswith("data.") for key in self.changed) else []
        parts += [self.label] if self.label is not None else []
        parts += [hash8(dict(self.changed))] if self.changed else []
        return run_dir / f"{'-'.join(parts)}.json"


def evaluate_on_rank(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> dict[str, float]:
    """Compute the metrics of the validation and test sets; rank 0 prints and writes them.

    Returns: them by name. Raises: UserError: a wrong argument, no such checkpoint, or nothing to evaluate.
    """
    from trainer.engine.build import build_trained

    own = refuse_unknown("eval", arguments, ["checkpoint"])
    config = prepared.config
    subject = _choose(prepared, run_dir, own.get("checkpoint"))
    data, module, trainer = build_trained(config, prepared.task, prepared.world, run_dir, subject.weights)
    metrics: dict[str, float] = {}
    if "val" in data.sets and config.trainer.limit_val_batches:
        trainer.validate(module, datamodule=data, verbose=False)
        metrics |= module.evaluated
    if "test" in data.sets and config.trainer.limit_test_batches:
        trainer.test(module, datamodule=data, verbose=False)
        metrics |= module.evaluated
    if not metrics:
        raise UserError(f"data={config.data.name}: has no validation or test set, or trainer.limit_*_batches=0")
    if prepared.world.rank == 0:
        _report(subject, run_dir, config.data.name, metrics)
    return metrics


def _choose(prepared: PreparedRun, run_dir: Path, checkpoint: str | None) -> Subject:
    """What to evaluate, decided by rank 0. Called on all ranks."""
    from trainer.collectives import decide_on_rank_0

    def choose() -> dict[str, Any]:
        """Weights file, label and changed keys, as JSON."""
        own, asked = identity(read_stored_config(run_dir).config), identity(prepared.config)
        changed = {key: asked.get(key) for key in sorted({*own, *asked}) if own.get(key) != asked.get(key)}
        if checkpoint is None:
            return {"weights": str(_final_weights(run_dir)), "label": None, "changed": changed}
        found = find_checkpoint(checkpoint, run_dir)
        is_own = found.parent == (run_dir / CHECKPOINTS_DIR).resolve()
        label = found.stem if is_own else f"{found.stem}-{hash8(str(found))}"
        return {"weights": str(weights_file(found)), "label": label, "changed": changed}

    choice = decide_on_rank_0(choose)
    return Subject(Path(choice["weights"]), choice["label"], choice["changed"])


def _final_weights(run_dir: Path) -> Path:
    path = run_dir / MODEL_FILE
    if not path.exists():
        raise UserError(
            f"run={run_dir}: no {MODEL_FILE} yet; the command that started the run resumes it",
            "to evaluate it as it is, name a checkpoint: checkpoint=best or checkpoint=last",
        )
    return path


def _report(subject: Subject, run_dir: Path, data_name: str, metrics: Mapping[str, float]) -> None:
    file = subject.result_file(run_dir, data_name)
    of = {"weights": subject.label or MODEL_FILE, "data": data_name, "changed": dict(subject.changed)}
    # eval.json stays a plain mapping of metrics, as everything that reads a run expects it.
    write_json(file, metrics if file.name == EVALUATION_FILE else {**of, "metrics": dict(metrics)})
    console = open_console()
    table = Table("metric", "value", title=f"{of['weights']} on {data_name}")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.4f}")
    console.print(table, highlight=False)
    for key, value in subject.changed.items():
        if not key.startswith("data."):
            console.print(f"not as in the run: {key}={shown(value)}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"written to {file}", highlight=False, markup=False, soft_wrap=True)

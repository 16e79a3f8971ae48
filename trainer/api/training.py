"""trainer.fit: train from a script or a notebook, by the code that the command line uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.api.objects import MODEL, TRANSFORM, PassedObjects
from trainer.api.process import exclusive, unchanged_process
from trainer.api.tables import history_of, last_values
from trainer.api.words import taken_apart
from trainer.errors import UserError
from trainer.faults.signals import stop_before_training
from trainer.launch.submit import submits
from trainer.parts import offered
from trainer.run.directory import StoppedAtOnce
from trainer.run.outcome import Status
from trainer.verbs.fit import fit_run, starts_nodes
from trainer.verbs.prepare import PreparedRun, prepare

if TYPE_CHECKING:
    import pandas as pd
    from pytorch_lightning import Callback
    from pytorch_lightning.loggers import Logger


@dataclass(frozen=True)
class RunResult:
    """What a run has come to.

    run_dir: the run directory. status: "finished", or "stopped" on request; the same call resumes a stopped run.
    metrics: the last value of every metric, by name, as in the table that a run prints.
    """

    run_dir: Path
    status: Status
    metrics: dict[str, float]

    @property
    def history(self) -> pd.DataFrame:
        """Every logged metric: a row for each logged step, a column for each metric, NaN where it was not logged."""
        return history_of(self.run_dir)


def fit(
    *overrides: str,
    model: Any = None,
    optimizer: Callable[..., Any] | None = None,
    scheduler: Callable[..., Any] | None = None,
    transform: Callable[..., Any] | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    metrics: Mapping[str, Any] | None = None,
) -> RunResult:
    """Train, or resume the unfinished run of these overrides, as `python -m trainer OVERRIDES` does.

    Ctrl-C stops after the current step with a checkpoint; a second one at once. The process is left as it was: random
    generators, signal handlers, loggers, environment, settings of torch.

    The keyword arguments are parts of your own in place of `_target_` (docs/own_parts.md), on the devices of this
    process; a call that resumes the run passes them again. Each is an object, or a class, function or functools.partial
    that gives one.

    Args: overrides: as on the command line, "task=cnn"; also "--config-dir=DIR". model: a network, trained in place.
        optimizer, scheduler: not built yet. transform: of images in training. callbacks, loggers: of Lightning's kind.
        metrics: of torchmetrics, by the name under which each is logged.
    Raises: UserError: with the text that the command line prints. RankFailure: one of several ranks failed.
        KeyboardInterrupt: Ctrl-C before the run was opened.
    """
    options, words = taken_apart("fit", overrides)
    single = {MODEL: model, "optimizer": optimizer, "scheduler": scheduler, TRANSFORM: transform}
    passed = PassedObjects.of(single, callbacks, loggers, metrics)
    passed.refuse_members(words)
    words = [*words, *passed.words]
    with exclusive("fit"), offered(passed.objects):
        prepared = prepare(words, options)
        _refuse_other_processes(prepared)
        passed.refuse_other_processes(prepared)
        with unchanged_process(["trainer.fit", *options.as_words(), *words]):
            stop_before_training()
            try:
                outcome = fit_run(prepared)
                run_dir, status = outcome.run_dir, outcome.status
            except StoppedAtOnce as stop:
                run_dir, status = stop.run_dir, "stopped"
        return RunResult(run_dir, status, last_values(run_dir))


def _refuse_other_processes(prepared: PreparedRun) -> None:
    """Raises: UserError: the run would not be one of this process, and there would be nothing to return."""
    if submits(prepared.config):
        raise UserError("launch=slurm: submits a job, which trainer.fit cannot wait for", "use python -m trainer")
    if starts_nodes(prepared):
        advice = "start the ranks with torchrun or srun; each of them may call trainer.fit"
        raise UserError("trainer.num_nodes: trainer.fit starts ranks on this machine only", advice)

"""Jobs whose values Optuna chooses. Used directly, because Hydra's plugin pins a version from 2021."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from trainer.config.groups import OptunaConfig
from trainer.errors import UserError
from trainer.verbs.sweep.jobs import Job, Ledger, SweepPlan
from trainer.verbs.sweep.local import run_jobs

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study

JOURNAL = "study.journal"


def search(plan: SweepPlan, ledger: Ledger) -> bool:
    """Ask Optuna for trials until there are enough, run each as a job, and report its value to Optuna.

    Returns: whether the sweep was stopped. Raises: UserError: Optuna is not installed, or a key cannot be searched.
    """
    options = plan.config.sweep
    assert isinstance(options, OptunaConfig)
    distributions = {override.get_key_element(): distribution(override) for override in plan.swept}
    study = _open_study(plan, options, len(ledger.jobs))
    _settle_trials(study, ledger)
    unfinished = [job for job in ledger.jobs if job.status not in ("finished", "failed")]

    def next_job() -> Job | None:
        """An unfinished job, else a new trial's."""
        if unfinished:
            return unfinished.pop(0)
        if len(ledger.jobs) >= options.num_trials:
            return None
        trial = study.ask(distributions)
        words = [f"{key}={_typed(value)}" for key, value in trial.params.items()]
        job = Job(len(ledger.jobs) + 1, words, trial=trial.number)
        ledger.jobs.append(job)
        return job

    def done(job: Job) -> None:
        from optuna.trial import TrialState

        assert job.trial is not None
        if job.status == "finished" and job.value is not None:
            study.tell(job.trial, job.value)
        elif job.status != "stopped":
            study.tell(job.trial, state=TrialState.FAIL)

    return run_jobs(plan, ledger, next_job, done)


def distribution(override: Override) -> BaseDistribution:
    """The values that Optuna may choose for a swept override, from Hydra's grammar.

    a,b and choice(a,b): one of them. range(1,9): integers below 9. interval(0,1): any number between;
    tag(log,interval(0.001,1)): on a logarithmic scale. Raises: UserError: any other form.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None and value.end is not None
        return FloatDistribution(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int):
        values = list(value.range())
        return IntDistribution(int(values[0]), int(values[-1]), log=False, step=value.step)
    if isinstance(value, (ChoiceSweep, RangeSweep)):
        return CategoricalDistribution([str(word) for word in override.sweep_string_iterator()])
    raise UserError(f"{override.input_line}: cannot be searched; possible: a,b or range() or interval()")


def _open_study(plan: SweepPlan, options: OptunaConfig, num_jobs: int) -> Study:
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "sweep=optuna: the package optuna is not installed", "pip install 'hydra-lightning-trainer[optuna]'"
        )
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A resumed search creates its sampler again: with the same seed it would repeat its first values.
    seed = plan.config.seed + num_jobs
    samplers: dict[str, Any] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, constant_liar=options.parallel > 1),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    storage = options.storage or JournalStorage(JournalFileBackend(str(plan.directory / JOURNAL)))
    return optuna.create_study(
        storage=storage,
        sampler=samplers[options.sampler](),
        study_name=plan.directory.name,
        direction="maximize" if plan.config.monitor.mode == "max" else "minimize",
        load_if_exists=True,
    )


def _settle_trials(study: Study, ledger: Ledger) -> None:
    """Report to Optuna the trials that a killed sweep left open: ended ones with their value, lost ones as failed."""
    from optuna.trial import TrialState

    jobs = {job.trial: job for job in ledger.jobs}
    for trial in study.get_trials(states=(TrialState.RUNNING,), deepcopy=False):
        job = jobs.get(trial.number)
        if job is None or job.status == "failed":
            study.tell(trial.number, state=TrialState.FAIL)
        elif job.status == "finished" and job.value is not None:
            study.tell(trial.number, job.value)


def _typed(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)

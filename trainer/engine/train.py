"""From a configuration to a trained model: read this first.

`train` runs on every rank, inside its process group, however the rank was started. The task supplies data and
networks; everything else is built here.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from trainer.callbacks.build import build_callbacks
from trainer.checkpoint.callback import Checkpointing
from trainer.checkpoint.random_state import RandomState
from trainer.checkpoint.resume import choose_checkpoint, choose_final_checkpoint
from trainer.checkpoint.start import choose_start
from trainer.checkpoint.weights import WEIGHTS, first_mismatch, read_state, write_weights
from trainer.collectives import decide_on_rank_0, has_peers
from trainer.config.schema import Config
from trainer.config.secrets import map_texts, refer_to_environment
from trainer.data.module import DataModule
from trainer.engine.build import (
    build_clock,
    build_data_and_module,
    build_early_stopping,
    build_trainer,
    rank_device,
)
from trainer.engine.last_evaluation import check_interval, evaluate_after_last_step, num_steps
from trainer.engine.time_limit import TimeLimit
from trainer.errors import MicroBatchTooLarge, UserError, counted
from trainer.faults.heartbeat import Heartbeat
from trainer.faults.nonfinite import NonFiniteGuard, RolledBack
from trainer.faults.out_of_memory import shrink, with_found_micro_size
from trainer.faults.replicas import build_verification
from trainer.faults.stop import StopOnSignal, StopRequested
from trainer.module import TrainingModule
from trainer.network_strategy import StepOutOfMemory
from trainer.observe.account import close_account
from trainer.observe.bar import open_console
from trainer.observe.loggers import build_loggers, finish_loggers
from trainer.observe.metrics import TrainingMetrics
from trainer.observe.progress import ProgressBar
from trainer.observe.summary import print_start, print_summary
from trainer.profile.build import build_hook_times, build_profiled_steps, check_profiled_steps
from trainer.run.files import MODEL_FILE, STATE_FILE
from trainer.run.outcome import Outcome
from trainer.run.record import Record
from trainer.task import TaskSpec
from trainer.world import World


def train(config: Config, mapping: dict[str, Any], task: TaskSpec, world: World, run_dir: Path) -> Outcome:
    """Train the run in `run_dir`, from its newest checkpoint where there is one. Called on all ranks.

    Rank 0 records how it ended, unless it raises.

    Args: mapping: the configuration as written to config.yaml.
    Raises: UserError: the data, the model or the device is not as configured, or the run cannot be resumed.
        StopRequested: a signal has stopped the run. NonFinite: a loss or gradient is not finite.
    """
    while True:
        fitting = with_found_micro_size(config, run_dir)
        try:
            return _train(fitting, mapping, task, world, run_dir)
        except RolledBack as request:
            message = str(request)
        except StepOutOfMemory as error:
            message = shrink(config, fitting, world, run_dir, error)
            if has_peers():
                raise MicroBatchTooLarge(message) from None
        # Here the traceback is gone, which held the networks.
        gc.collect()
        torch.cuda.empty_cache()
        if world.rank == 0:
            print(message, file=sys.stderr, flush=True)


def _train(config: Config, mapping: dict[str, Any], task: TaskSpec, world: World, run_dir: Path) -> Outcome:
    """See `train`. Raises: RolledBack: also where the run goes on from its newest checkpoint."""
    console = open_console()
    clock = build_clock(world)
    record = Record(run_dir)
    stop = StopOnSignal()
    checkpoint = choose_checkpoint(run_dir)
    data, module = build_data_and_module(config, task, world, run_dir if checkpoint else None)
    module.clock = data.clock = clock
    check_interval(config, data)
    check_profiled_steps(config, num_steps(config, data))
    decide_on_rank_0(lambda: _record_data(record, data, resumed=checkpoint is not None))
    origin = choose_start(config, module, data, checkpoint, rank_device(world))
    if world.rank == 0:
        facts = {"data": map_texts(data.describe(), refer_to_environment), "model": _model_facts(module)}
        record.update(**facts)
        if checkpoint is None:
            data.write_input_spec(run_dir)
            record.update(init=origin.init)
        print_start(console, run_dir, config, world, facts, origin.lines)
    metrics = TrainingMetrics(config.trainer.log_every_n_steps, config.trainer.precision, clock)
    saving = Checkpointing(config, run_dir, stop, clock)
    early_stopping = build_early_stopping(config)
    bar = [ProgressBar(metrics, console)] if config.trainer.enable_progress_bar else []
    time_limit = [TimeLimit(config.trainer.max_time)] if config.trainer.max_time else []
    # Saving comes last: a checkpoint holds what the others have made of the step.
    parts = [*bar, *origin.callbacks, *build_callbacks(config), *early_stopping, *time_limit]
    profiled = build_profiled_steps(config, world.rank, run_dir, clock)
    guard = NonFiniteGuard(config, run_dir)
    faults = [Heartbeat(config, world, run_dir, clock), *build_verification(config, world)]
    callbacks: list[Callback] = [RandomState(), *faults, metrics, guard, stop, *profiled, *parts, saving]
    loggers = build_loggers(config, mapping, record) if world.rank == 0 else []
    trainer = build_trainer(config, world, run_dir, callbacks, loggers, build_hook_times(config, world.rank, run_dir))
    evaluate_after_last_step(trainer, config)
    try:
        _fit(trainer, module, data, origin.state)
        # Lightning counts an epoch that max_steps has cut short as completed, but not where nothing is left to train.
        trainer.fit_loop.epoch_progress.current.completed = metrics.epoch
        model_file = finish(config, trainer, module, data, run_dir, saving.best_step)
    except (StopRequested, RolledBack, StepOutOfMemory):
        finish_loggers(loggers, 1, None)
        raise
    cause, account = _cause(trainer), close_account(clock, config, world.accelerator, metrics.efficiency())
    if trainer.is_global_zero:
        record.update(time=account.as_record(), peak_flops_per_s=asdict(metrics.peaks) if metrics.peaks else None)
        record.end_attempt("finished", cause)
        if config.run.report and not config.trainer.fast_dev_run:
            _write_report(run_dir)
        places = finish_loggers(loggers, 0, model_file)
        console.print(cause, highlight=False)
        print_summary(console, run_dir, config, account, places)
    return Outcome(run_dir, "finished", cause)


def _fit(trainer: pl.Trainer, module: TrainingModule, data: DataModule, state: Path | None) -> None:
    """Lightning's loop. Raises: UserError: the state is of another network, as after a change of the user's own."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(state) if state else None)
    except RuntimeError as error:
        if state is None or "in loading state_dict for" not in str(error):
            raise
        advice = "go on with the network that the run began with, or start over with run.fresh=true"
        raise UserError(f"{state}: weights of another network ({first_mismatch(error)})", advice) from error


def _record_data(record: Record, data: DataModule, resumed: bool) -> None:
    """Store the data's fingerprint in the run's first attempt, and compare it in later ones.

    Raises: UserError: the run has been trained on other data.
    """
    fingerprint = data.fingerprint()
    stored = record.read().get("data_fingerprint")
    if resumed and stored is not None and fingerprint != stored:
        raise UserError(
            f"{record.directory}: the data has changed since this run began; "
            "start over with run.fresh=true or another run.name, or restore the data"
        )
    record.update(data_fingerprint=fingerprint)


def finish(
    config: Config, trainer: pl.Trainer, module: TrainingModule, data: DataModule, run_dir: Path, best_step: int | None
) -> Path:
    """Load the best weights, test them where there is a test set, and write them as safetensors.

    They come from the checkpoint, which holds full tensors under every strategy. Called on all ranks.
    """
    with module.clock.within("checkpoint"):
        state = read_state(choose_final_checkpoint(run_dir, best_step) / STATE_FILE, WEIGHTS)
    if "test" in data.sets and config.trainer.limit_test_batches:
        with module.clock.within("evaluation"):
            trainer.strategy.load_model_state_dict(state)
            trainer.test(module, datamodule=data, verbose=False)
    path = run_dir / MODEL_FILE
    if trainer.is_global_zero:
        with module.clock.within("checkpoint"):
            write_weights(state["state_dict"], path)
        module.write_results(run_dir, state["state_dict"])
    return path


def _write_report(run_dir: Path) -> None:
    # Bokeh, which nothing else of a run needs, takes a third of a second to import.
    from trainer.report.page import write_final_report

    write_final_report(run_dir)


def _cause(trainer: pl.Trainer) -> str:
    stopping = trainer.early_stopping_callback
    if stopping is not None and stopping.stopping_reason_message:
        return f"stopped early after step {trainer.global_step}: {stopping.stopping_reason_message}"
    limit = next((callback for callback in trainer.callbacks if isinstance(callback, TimeLimit)), None)  # pyright: ignore[reportAttributeAccessIssue]
    if limit is not None and limit.reached:
        return f"ended after step {trainer.global_step}: trainer.max_time={limit.max_time} is reached"
    return f"{counted(trainer.global_step, 'step')} done"


def _model_facts(module: TrainingModule) -> dict[str, Any]:
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in module.networks().items()}
    describe = getattr(module, "describe", dict)
    return {"num_parameters": counts, **describe()}

"""Training on from a whole state of another configuration: of a run that is now longer, or that ckpt_path names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from trainer.checkpoint.callback import STATE_KEY
from trainer.checkpoint.store import find_damage, read_manifest
from trainer.checkpoint.weights import read_state
from trainer.collectives import decide_on_rank_0
from trainer.config.identity import identity_hash
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.module import TrainingModule
from trainer.run.files import MANIFEST_FILE
from trainer.run.init_source import source_file, source_key, source_run
from trainer.run.record import Record

# Of a checkpoint of this project; one of Lightning's own lacks some of them.
WHOLE_STATE = (
    "state_dict", "optimizer_states", "lr_schedulers", "loops", "random_states", "rank_buffers", STATE_KEY,
)  # fmt: skip
# Where a state stands in the data depends on these.
SAME_KEYS = ("seed", "batch.global_size", "trainer.limit_train_batches")
# In the keys of states of callbacks that have ended, or would end, training.
ENDS_TRAINING = ("EarlyStopping", "TimeLimit")
NO_BEST = {"best": []}


class Continuation(pl.Callback):
    """Gives optimizers and schedules the new configuration's values; early stopping and max_time count anew.

    The learning rate of a step is what the new schedule gives at it, as if the run had had it from the start. torch
    would keep the old optimizer's values, and the last learning rate of the old schedule for one more step.

    Args: own: whether the state is of the same run, which has the best checkpoint so far.
    """

    def __init__(self, own: bool) -> None:
        self.own = own
        self.saved: list[list[Mapping[str, Any]]] = []
        self.built: list[list[dict[str, Any]]] = []
        self.base_lrs: list[list[float]] = []

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take out what belongs to the old configuration."""
        self.saved = [state["param_groups"] for state in checkpoint["optimizer_states"]]
        for key in [key for key in checkpoint["callbacks"] if any(name in key for name in ENDS_TRAINING)]:
            del checkpoint["callbacks"][key]
        if not self.own:
            checkpoint[STATE_KEY] = {**checkpoint[STATE_KEY], **NO_BEST}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the groups as they were built, before the state is loaded.

        Raises: UserError: the state is that of another optimizer.
        """
        self.built = [[_options(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        self.base_lrs = [[float(lr) for lr in entry.scheduler.base_lrs] for entry in trainer.lr_scheduler_configs]  # pyright: ignore[reportAttributeAccessIssue]
        keys = [[set(group) for group in groups] for groups in self.built]
        saved_keys = [[set(_options(group)) for group in groups] for groups in self.saved]
        # Counted over the networks: DeepSpeed has flattened the parameters of its groups by now.
        count = sum(parameter.requires_grad for parameter in _networks_parameters(pl_module))
        saved_count = sum(len(group["params"]) for groups in self.saved for group in groups)
        if keys != saved_keys or count != saved_count:
            raise UserError(
                "optimizer: the checkpoint holds the state of another optimizer, or of other trained layers",
                "choose the optimizer of its run, or take only the weights with init.from=CHECKPOINT",
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the loaded groups the built values, and the learning rate of this step.

        A scheduler of the user's own goes on from its saved state, since its rate may depend on the steps before.
        """
        saved_lr = trainer.optimizers[-1].param_groups[0]["lr"]
        for number, (optimizer, built) in enumerate(zip(trainer.optimizers, self.built, strict=True)):
            schedule = trainer.lr_scheduler_configs[number].scheduler
            rates = [group["lr"] for group in optimizer.param_groups]
            if isinstance(schedule, LambdaLR):
                schedule.base_lrs = list(self.base_lrs[number])
                factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
                rates = schedule._last_lr = [lr * by for lr, by in zip(schedule.base_lrs, factors, strict=True)]
            for group, options, lr in zip(optimizer.param_groups, built, rates, strict=True):
                group.update(options, lr=lr)
        if trainer.is_global_zero:
            lr, total = trainer.optimizers[-1].param_groups[0]["lr"], int(trainer.estimated_stepping_batches)
            now = f"{lr:.4g} from step {trainer.global_step + 1} of {total} on (it was {saved_lr:.4g})"
            is_own = not isinstance(trainer.lr_scheduler_configs[-1].scheduler, LambdaLR)
            how = "where the scheduler has stopped" if is_own else "as if the schedule had been this one from the start"
            print(f"learning rate: {now}, {how}", flush=True)


def _networks_parameters(module: pl.LightningModule) -> Iterator[nn.Parameter]:
    assert isinstance(module, TrainingModule)
    for network in module.networks().values():
        yield from network.parameters()


def is_of_shorter_run(config: Config, checkpoint: Path) -> bool:
    """Whether a checkpoint was saved before its run was made longer. Called on all ranks."""
    own = identity_hash(config)
    return decide_on_rank_0(lambda: read_manifest(checkpoint).get("hash", own) != own)


def find_state(config: Config, module: TrainingModule, fingerprint: str | None) -> Path:
    """The state that init.ckpt_path names, checked. Called on all ranks.

    Args: fingerprint: of the new run's data.
    Raises: UserError: it is damaged or not whole, does not fit the model, the data or the batch, or is at the end of
        the new run.
    """
    return Path(decide_on_rank_0(lambda: _find_state(config, module, fingerprint)))


def _find_state(config: Config, module: TrainingModule, fingerprint: str | None) -> str:
    init = config.init
    file, given = source_file(init), source_key(init)
    if (file.parent / MANIFEST_FILE).exists() and (damage := find_damage(file.parent.resolve())):
        raise UserError(f"{given}: {file.parent} is damaged ({damage})")
    try:
        state = read_state(file)
    except UserError as error:
        raise UserError(f"{given}: {error.lines[0].removeprefix('checkpoint=')}") from error
    missing = [name for name in WHOLE_STATE if name not in state]
    if missing:
        raise UserError(f"{given}: no whole state ({', '.join(missing)} missing); init.from={file} takes its weights")
    _check_weights(given, module.state_dict(), state["state_dict"])
    run = source_run(init)
    if run is not None:
        _check_run(config, Record(run).read(), given, fingerprint)
    _check_length(config, state, given)
    return str(file)


def _check_weights(given: str, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    differing = [
        name
        for name in {**own, **saved}
        if name not in own or name not in saved or own[name].shape != saved[name].shape
    ]
    if differing:
        raise UserError(
            f"{given}: the state of another model; {len(differing)} tensors differ, such as {', '.join(differing[:3])}",
            "init.from=PATH takes the weights that fit",
        )


def _check_run(config: Config, record: Mapping[str, Any], given: str, fingerprint: str | None) -> None:
    if record.get("data_fingerprint") not in (None, fingerprint):
        raise UserError(f"{given}: its run was trained on other data", "init.from=PATH takes only the weights")
    values: dict[str, Any] = {"seed": config.seed, "batch.global_size": config.batch.global_size}
    values["trainer.limit_train_batches"] = config.trainer.limit_train_batches
    for key in SAME_KEYS:
        saved = record["identity"].get(key, values[key])
        if saved != values[key]:
            advice = "the state's place in the data depends on it; init.from=PATH takes only the weights"
            raise UserError(f"{key}={values[key]}: the run of {given} has {saved}", advice)


def _check_length(config: Config, state: Mapping[str, Any], given: str) -> None:
    """Raises: UserError: nothing is left to train."""
    loops = state["loops"]["fit_loop"]
    at_end = bool(loops["epoch_loop.batch_progress"]["is_last_batch"])
    epoch = loops["epoch_progress"]["current"]
    epochs = epoch["processed"] + (at_end and epoch["ready"] > epoch["processed"])
    step, options = state["global_step"], config.trainer
    if options.max_epochs is not None and epochs >= options.max_epochs:
        raise UserError(f"trainer.max_epochs={options.max_epochs}: {given} has {epochs} done; choose more")
    if 0 <= options.max_steps <= step:
        raise UserError(f"trainer.max_steps={options.max_steps}: {given} has {step} done; choose more")


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}

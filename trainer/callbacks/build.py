"""The callbacks that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping

from pytorch_lightning import callbacks as lightning

from trainer.callbacks.averaging import WeightAverage
from trainer.callbacks.freezing import Freeze
from trainer.config.callbacks import EMAConfig, FreezeConfig, SWAConfig
from trainer.config.own_parts import TARGET, OwnCallbackConfig
from trainer.config.schema import CallbackConfig, Config
from trainer.errors import UserError
from trainer.parts import build_part

# Lightning's that would act beside the project's own, or on what a step is not here.
REPLACED: dict[type[lightning.Callback], str] = {
    lightning.EarlyStopping: "use monitor.patience=N, which a resumed run continues",
    lightning.GradientAccumulationScheduler: "use batch.global_size and batch.micro_size",
    lightning.LearningRateMonitor: "optim/lr is logged in any case",
    lightning.ModelCheckpoint: "use checkpoint.*",
    lightning.StochasticWeightAveraging: "use callbacks=swa",
    lightning.WeightAveraging: "use callbacks=ema or callbacks=swa",
}


def build_callbacks(config: Config) -> list[lightning.Callback]:
    """In the order of the configuration, averages of weights last: they average what the others have made of a step.

    Raises: UserError: one of the user's own cannot be built, or does what the project does itself.
    """
    built = {f"callbacks.{name}": _build(f"callbacks.{name}", node) for name, node in config.callbacks.items()}
    _check_state_keys(built)
    return sorted(built.values(), key=lambda callback: isinstance(callback, WeightAverage))


def _check_state_keys(callbacks: Mapping[str, lightning.Callback]) -> None:
    """Raises: UserError: two callbacks would save their states in one place."""
    owners: dict[str, str] = {}
    for key, callback in callbacks.items():
        if type(callback).state_dict is lightning.Callback.state_dict:
            continue
        owner = owners.setdefault(callback.state_key, key)
        if owner != key:
            kind = type(callback).__name__
            raise UserError(f"{key}: saves its state where {owner} does; give {kind} a property state_key that differs")


def _build(key: str, config: CallbackConfig) -> lightning.Callback:
    if isinstance(config, EMAConfig | SWAConfig):
        return WeightAverage(config)
    if isinstance(config, FreezeConfig):
        return Freeze(key, config)
    assert isinstance(config, OwnCallbackConfig)
    callback = build_part(key, config, lightning.Callback, {})
    for kind, advice in REPLACED.items():
        if isinstance(callback, kind):
            raise UserError(f"{key}.{TARGET}={config.target}: {advice}")
    return callback

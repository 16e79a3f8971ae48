"""Schemas of the `callbacks` group, whose members work together: callbacks=[ema,freeze]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from trainer.config.schema import CallbackConfig, Config, Count, Fraction, settings
from trainer.config.strategies import shards_state
from trainer.errors import Problem

StepNumber = Annotated[int, Field(ge=0)]


@settings
class EMAConfig(CallbackConfig):
    """Exponential moving average of the weights, which is what is evaluated, saved and exported.

    Buffers, such as BatchNorm's running averages, are the network's own.
    """

    decay: Annotated[float, Field(ge=0.0, lt=1.0)]
    """Share of the average that remains at an update; the rest comes from the weights."""
    start_step: StepNumber
    """Steps before the first update, which takes the weights as they are."""
    every_n_steps: Count
    """Steps between two updates."""


@settings
class SWAConfig(CallbackConfig):
    """Mean of the weights over the end of training, which is what is evaluated, saved and exported from then on.

    Floating-point buffers, such as BatchNorm's running averages, are averaged in the same way, and over ranks.
    """

    start_fraction: Fraction
    """Share of all steps after which averaging starts."""
    every_n_steps: Count | None
    """Steps between two updates; null is the end of each epoch, and the last step."""


@settings
class FreezeConfig(CallbackConfig):
    """Parameters that a part of training leaves as they are, weight decay and optimizer state included."""

    parameters: list[str]
    """Their names, with * for any text, such as model.encoder.*; buffers are no parameters and still change."""
    from_step: StepNumber
    """Steps after which they are frozen."""
    until_step: Count | None
    """Steps after which they are trained again; null never."""


CALLBACKS: Mapping[str, type[CallbackConfig]] = {"ema": EMAConfig, "swa": SWAConfig, "freeze": FreezeConfig}
# Names of lightning-hydra-template's and Lightning's callbacks that other keys replace here.
REPLACED_CALLBACKS = {
    "early_stopping": "monitor.patience=N stops early",
    "learning_rate_monitor": "optim/lr is logged in any case",
    "lr_monitor": "optim/lr is logged in any case",
    "model_checkpoint": "checkpoint.* says when checkpoints are saved",
    "model_summary": "the number of parameters is printed and recorded in any case",
    "rich_model_summary": "the number of parameters is printed and recorded in any case",
    "rich_progress_bar": "trainer.enable_progress_bar=true shows one",
}


def average_of(config: Config[Any, Any, Any]) -> tuple[str, EMAConfig | SWAConfig] | None:
    """The configured average of weights and its name; None where there is none."""
    return next(((n, c) for n, c in config.callbacks.items() if isinstance(c, EMAConfig | SWAConfig)), None)


def callback_problems(config: Config) -> Iterator[Problem]:
    """Contradictions among callbacks, and with the strategy."""
    averages = [name for name, node in config.callbacks.items() if isinstance(node, EMAConfig | SWAConfig)]
    if len(averages) > 1:
        yield Problem("callbacks", f"[{','.join(averages)}]", "a run evaluates one average of weights: ema or swa")
    for name, node in config.callbacks.items():
        key = f"callbacks.{name}"
        if isinstance(node, EMAConfig | SWAConfig):
            if shards_state(config.strategy):
                yield Problem("callbacks", name, f"needs full weights, which {config.strategy.name} shards; use ddp")
            if config.trainer.precision == "bf16-true":
                yield Problem("callbacks", name, "bfloat16 rounds small changes of an average away; use bf16-mixed")
        if isinstance(node, FreezeConfig):
            if not node.parameters:
                yield Problem(f"{key}.parameters", "[]", f"name some, as in {key}.parameters=[model.encoder.*]")
            if node.until_step is not None and node.until_step <= node.from_step:
                yield Problem(f"{key}.until_step", node.until_step, f"must be more than from_step={node.from_step}")
            if config.strategy.name.startswith("deepspeed"):
                yield Problem("callbacks", name, "DeepSpeed keeps the gradients to itself; use ddp or fsdp2")

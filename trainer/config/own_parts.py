"""Parts of the user's own: nodes with `_target_`, the import path of a class or function, and its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from trainer.config.schema import CallbackConfig, LoggerConfig, ModelConfig, OptimizerConfig, SchedulerConfig, settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

TARGET = "_target_"
# Begins the target of a part that a Python call has passed as an object; its class or function is named behind it.
OBJECT = "object:"
# Groups of which one member is chosen; conf/GROUP/own.yaml has the values that a part of one's own may leave out.
OWN_MEMBER = "own"
OWN_GROUPS = ("model", "optimizer", "scheduler")
# lightning-hydra-template's files set it; here such a part is always called later, with what only the run knows.
PARTIAL = "_partial_"


@settings
class OwnPart:
    """A class or function of the user's own; see docs/own_parts.md."""

    target: Annotated[str, Field(alias=TARGET)]
    """Import path, such as my_package.MyNet."""
    arguments: dict[str, Any]
    """Its keyword arguments: all other keys of the node."""

    @model_validator(mode="before")
    @classmethod
    def _collect_arguments(cls, node: Any) -> Any:
        return split_arguments(node, cls) if isinstance(node, Mapping) else node


@settings
class OwnModelConfig(ModelConfig, OwnPart):
    """A network of the user's own: called with the facts that its parameters name, and the node's other keys."""


@settings
class OwnOptimizerConfig(OptimizerConfig, OwnPart):
    """An optimizer of the user's own: called with groups of parameters, lr, weight_decay and the node's other keys."""


@settings
class OwnSchedulerConfig(SchedulerConfig, OwnPart):
    """A schedule of the user's own, after the warm-up: a torch scheduler, called with the optimizer, or a function
    (step, total_steps) -> factor of the learning rate."""


@settings
class OwnCallbackConfig(CallbackConfig, OwnPart):
    """A callback of the user's own, or one of Lightning's: a pytorch_lightning.Callback."""


@settings
class OwnLoggerConfig(LoggerConfig, OwnPart):
    """A logger of the user's own, or one of Lightning's: a pytorch_lightning.loggers.Logger, built on rank 0, and given
    run_dir or save_dir where it names it."""


@settings
class OwnTransformConfig(OwnPart):
    """An augmentation of the user's own: called in training with images (B, C, H, W) float32 on a scale of 0 to 1, and
    with draws (B, 3) where it names them; returns images of the same shape."""


@settings
class OwnMetricConfig(OwnPart):
    """A torchmetrics.Metric of the user's own or of torchmetrics', updated with the outputs (B, K) and the labels (B,)
    of each evaluation batch; it gives one number."""


def is_own(node: Any) -> bool:
    """Whether a node of the configuration names a class or function to import."""
    return isinstance(node, Mapping) and TARGET in node


def find_targets(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key of the node, import path) of every `_target_` at any depth; inner ones are imported too."""
    if is_own(node):
        yield prefix, str(node[TARGET])
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from find_targets(child, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for number, child in enumerate(node):
            yield from find_targets(child, f"{prefix}[{number}]")


def own_targets(key: str, part: object) -> Iterator[tuple[str, str]]:
    """As find_targets, of a typed node; nothing where it is no part of the user's own."""
    if isinstance(part, OwnPart):
        yield from find_targets({TARGET: part.target, **part.arguments}, key)


def target_words(node: Any) -> list[str]:
    """The overrides that repeat to another process what a configuration may import."""
    return [f"{key}.{TARGET}={target}" for key, target in find_targets(node)]


def split_arguments(node: Mapping[str, Any], schema: type[Any]) -> dict[str, Any]:
    """An own node as its schema takes it: what is no field of the schema is an argument."""
    known = {TARGET, *schema.__dataclass_fields__} - {"target", "arguments"}
    arguments = {key: value for key, value in node.items() if key not in known and key != PARTIAL}
    return {**{key: value for key, value in node.items() if key in known}, "arguments": arguments}


def open_own_nodes(overrides: Sequence[Override]) -> list[str]:
    """The words of a command line, in which a node that is given a `_target_` may be given any other key.

    NODE._target_=... also chooses the member `own` of a group, unless the words choose one.
    """
    keys = {override.key_or_group for override in overrides}
    nodes = {key.removesuffix(f".{TARGET}") for key in keys if key.endswith(f".{TARGET}")}
    words = [f"{group}={OWN_MEMBER}" for group in OWN_GROUPS if group in nodes - keys]
    for override in overrides:
        word = override.input_line or ""
        below = any(override.key_or_group.startswith(f"{node}.") for node in nodes)
        words.append(f"++{word.lstrip('+')}" if below and not override.is_delete() else word)
    return words

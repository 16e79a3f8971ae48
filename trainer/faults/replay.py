"""A step that gave a loss or gradient that is not finite, computed again to find where that begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.data.batch import MicroBatch, StepBatch
from trainer.module import TrainingModule


@dataclass
class Finding:
    """What one micro-batch of one rank gives.

    samples: of the training set. losses: in the order of their backward passes. inputs: the samples whose own tensors
    are not finite. tensor: the first that is not finite in the forward pass. gradient: the parameter nearest to
    the loss whose gradient is not finite; None also where ranks cannot differentiate alone, with sharded networks.
    """

    samples: list[int]
    losses: list[float] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    tensor: str | None = None
    gradient: str | None = None

    @property
    def is_bad(self) -> bool:
        """Whether anything in it is not finite."""
        finite = all(torch.isfinite(torch.tensor(self.losses)))
        return not finite or bool(self.inputs or self.tensor or self.gradient)

    def as_record(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "is_bad": self.is_bad}


def replay(module: TrainingModule, batch: StepBatch[Any], batch_idx: int, whole_networks: bool) -> list[Finding]:
    """Compute this rank's share of a step again, one micro-batch at a time, without any update. Called on all ranks.

    Args: whole_networks: whether this rank can differentiate without the others.
    """
    devices = [module.device] if module.device.type == "cuda" else []
    findings = []
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        for micro in batch.micro_batches:
            finding = Finding(micro.indices[: micro.num_valid].tolist(), inputs=samples_not_finite(micro))
            with _without_updates(module, finding, whole_networks), _watching(module.networks(), finding):
                module.training_step(StepBatch([micro], batch.num_samples), batch_idx)
            findings.append(finding)
    return findings


def first_bad_weight(networks: Mapping[str, nn.Module]) -> str | None:
    """The first parameter or buffer of which this rank holds a value that is not finite."""
    for network, module in networks.items():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not is_finite(tensor):
                return f"{network}.{name}"
    return None


def samples_not_finite(micro: MicroBatch) -> list[int]:
    """The samples of which an input or a label is not finite."""
    bad = torch.zeros(micro.num_valid, dtype=torch.bool)
    for entry in fields(micro):
        tensor = getattr(micro, entry.name)
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape[:1] == micro.indices.shape:
            bad |= ~tensor[: micro.num_valid].reshape(micro.num_valid, -1).isfinite().all(1).cpu()
    return micro.indices[: micro.num_valid][bad.to(micro.indices.device)].tolist()


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; of a sharded tensor those of this rank."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return not local.is_floating_point() or bool(local.isfinite().all())


@contextmanager
def _without_updates(module: TrainingModule, finding: Finding, whole_networks: bool) -> Iterator[None]:
    """Undo what `training_step` does beyond computing losses: gradients stay on this rank, and no weight moves."""

    def differentiate(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        finding.losses.append(float(loss))
        if whole_networks:
            loss.backward()
            finding.gradient = finding.gradient or _last_bad_gradient(module.networks())

    wrapped, others = module.wrapped, _beside_networks(module)
    before = [tensor.detach().clone() for tensor in others]
    if whole_networks:
        # The wrappers sum gradients over ranks, and a sum does not show which rank was not finite.
        module.wrapped = dict(module.networks())
        _clear(module)
    module.manual_backward, module.optimize = differentiate, lambda network: None
    try:
        with nullcontext() if whole_networks else torch.no_grad():
            yield
    finally:
        del module.manual_backward, module.optimize
        module.wrapped = wrapped
        for tensor, value in zip(others, before, strict=True):
            tensor.detach().copy_(value)
        if whole_networks:
            _clear(module)


def _beside_networks(module: TrainingModule) -> list[Tensor]:
    """What a step may change besides the networks, such as an average of their weights."""
    trained = {id(t) for network in module.networks().values() for t in (*network.parameters(), *network.buffers())}
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in trained]


@contextmanager
def _watching(networks: Mapping[str, nn.Module], finding: Finding) -> Iterator[None]:
    """Keep the first output of any part of a network that is not finite."""

    def look(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook: record the output if it is the first one that is not finite."""
        tensors = [output] if isinstance(output, Tensor) else output if isinstance(output, (tuple, list)) else []
        for tensor in tensors:
            if finding.tensor is None and isinstance(tensor, Tensor) and not is_finite(tensor):
                count = int((~tensor.isfinite()).sum())
                finding.tensor = (
                    f"output of {name} ({type(part).__name__}), {count} of {tensor.numel()} values, "
                    f"shape {list(tensor.shape)}"
                )

    hooks = [
        part.register_forward_hook(partial(look, f"{network}.{name}".rstrip(".")))
        for network, module in networks.items()
        for name, part in module.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_bad_gradient(networks: Mapping[str, nn.Module]) -> str | None:
    """Layers are registered from input to output in most networks, and the backward pass begins at the output."""
    bad: Callable[[nn.Parameter], bool] = lambda p: p.grad is not None and not is_finite(p.grad)  # noqa: E731
    names = [f"{network}.{n}" for network, module in networks.items() for n, p in module.named_parameters() if bad(p)]
    return names[-1] if names else None


def _clear(module: TrainingModule) -> None:
    for network in module.networks().values():
        network.zero_grad(set_to_none=True)

"""BatchNorm over the global batch, on any device.

torch's SyncBatchNorm refuses tensors on the CPU, so a run on CPU ranks could not be the same as one on GPUs; on GPUs
it stays in charge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm


class _AllReduceSum(Function):
    """Sum over ranks whose gradient is the sum of the ranks' gradients (torch.distributed.nn's is deprecated)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _AllReduceSum.apply(gradient.contiguous())  # pyright: ignore[reportReturnType]


# torch.compile cannot follow a collective of this kind: it compiles what is before and after.
_all_reduce_sum = cast(Callable[[Tensor], Tensor], torch.compiler.disable(_AllReduceSum.apply))


class GlobalBatchNorm(_BatchNorm):
    """nn.BatchNorm1d/2d/3d whose training statistics are those of the global batch, on CPU ranks.

    Ranks may hold different numbers of rows, or none. No subclass of torch's SyncBatchNorm: DDP refuses those on the
    CPU by their type.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: input (B, C, ...), B this rank's rows; the result has its shape and type."""
        if not self.training or not _has_peers():
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        # Statistics in single precision even where autocast hands over bf16, as F.batch_norm keeps them.
        values = input.float()
        rows = values.new_tensor([input.numel() / input.shape[1]])
        sums = _all_reduce_sum(torch.cat([values.sum(axes), rows]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1]
        # Two passes, as subtracting the squared mean from the mean square cancels digits.
        centred = values - mean.view(shape)
        variance = _all_reduce_sum(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        output = centred * scale.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """torch's hook: the dimensions after the second one are free, as in SyncBatchNorm."""
        if input.ndim < 2:
            raise ValueError(f"expected at least a 2D input, got {input.ndim}D")

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics as nn.BatchNorm2d does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance * (count / (count - 1)), factor)


def convert_sync_batchnorm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let every BatchNorm layer of a network take its statistics over the global batch; state-dict keys stay.

    Args: device: where the network will train; anything but the CPU gets torch's own layer.
    Returns: the network, or its replacement where it is itself a BatchNorm layer.
    """
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if device.type == "cpu":
        for layer in converted.modules():
            if type(layer) is nn.SyncBatchNorm:
                # Both classes have the same state, and torch's conversion knows what to carry over.
                layer.__class__ = GlobalBatchNorm  # pyright: ignore[reportAttributeAccessIssue]
    return converted


def _has_peers() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

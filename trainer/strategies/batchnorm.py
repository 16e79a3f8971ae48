"""Synchronised BatchNorm on any device.

torch's SyncBatchNorm refuses CPU tensors, so runs on CPU ranks could not match those on GPUs, where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.collectives import has_peers


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


# torch.compile cannot trace this collective: it compiles the code before and after it.
_all_reduce_sum = cast(Callable[[Tensor], Tensor], torch.compiler.disable(_AllReduceSum.apply))


class GlobalBatchNorm(_BatchNorm):
    """nn.BatchNorm1d/2d/3d whose training statistics are those of the global batch, on CPU ranks.

    Ranks may hold different numbers of rows, or none. Not a subclass of torch's SyncBatchNorm, which DDP refuses on
    the CPU by its type.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: input (B, C, ...) with B this rank's rows -> the same shape and type."""
        if not self.training or not has_peers():
            return super().forward(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        # Statistics in single precision also where autocast passes bf16, as F.batch_norm computes them.
        values = input.float()
        rows = values.new_tensor([input.numel() / input.shape[1]])
        sums = _all_reduce_sum(torch.cat([values.sum(axes), rows]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1]
        # Two passes: the mean square minus the squared mean would lose digits.
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
        """torch's hook: any number of dimensions after the second, as in SyncBatchNorm."""
        if input.ndim < 2:
            raise ValueError(f"expected at least a 2D input, got {input.ndim}D")

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics as nn.BatchNorm2d does, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance * (count / (count - 1)), factor)


def synchronise_batchnorm(network: nn.Module, accelerator: Literal["cpu", "cuda"]) -> None:
    """Let every BatchNorm layer of a network use the statistics of the global batch, in place; names do not change.

    Args: accelerator: of the ranks; on cuda the layers become torch's own SyncBatchNorm.
    """
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            # All these classes have the same state. torch's conversion builds new layers, which it cannot put in the
            # place of a network that is itself a BatchNorm layer.
            layer.__class__ = GlobalBatchNorm if accelerator == "cpu" else nn.SyncBatchNorm
            if isinstance(layer, nn.SyncBatchNorm):
                layer.process_group = None  # all ranks

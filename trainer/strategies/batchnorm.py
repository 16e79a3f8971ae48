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
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.collectives import has_peers


class _GlobalNorm(Function):
    """Normalise with the mean and variance of all ranks' rows; one collective forward, one backward.

    torch's fused kernels do the passes over the tensor. Written as ordinary operations on tensors, the same layer takes
    several times as long on the CPU.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shapes: values (B, C, ...) float32; weight, bias (C,) -> (B, C, ...), mean (C,), variance (C,), count ()."""
        mean, variance, count = _global_statistics(values)
        output = F.batch_norm(values, mean, variance, weight, bias, eps=eps)
        ctx.save_for_backward(values, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """Shapes: gradient (B, C, ...) -> gradients of values (B, C, ...), weight and bias (C,) of this rank's rows."""
        values, weight, mean, variance, count = ctx.saved_tensors
        # With `train` false the kernel takes mean and variance as constants, and returns the two sums over this rank's
        # rows that the rest needs: of gradient * normalised values (as that of the weight) and of gradient.
        if values.numel():
            partial, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        else:  # the kernel divides by the number of rows
            partial, of_weight, of_bias = gradient.clone(), torch.zeros_like(mean), torch.zeros_like(mean)
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        # Ioffe and Szegedy 2015, section 3: w/s * (g - mean(g) - x_hat * mean(g * x_hat)), with x_hat = (x - m)/s.
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        slope = scale * inverse * sums[0] / count
        shift = scale * sums[1] / count - slope * mean
        shape = [1, -1, *[1] * (values.ndim - 2)]
        partial.addcmul_(values, slope.view(shape), value=-1).sub_(shift.view(shape))
        return partial, None if weight is None else of_weight, None if weight is None else of_bias, None


def _global_statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of rows () over all ranks, from each rank's own.

    Chan, Golub and LeVeque 1983: the variance within ranks and that between their means. The mean square minus the
    squared mean would lose digits.
    """
    num_channels = values.shape[1]
    own = values.new_zeros(2 * num_channels + 1)
    if values.numel():
        mean, variance = torch.ops.aten.batch_norm_update_stats(values, None, None, 0.0)
        own = torch.cat([mean, variance, values.new_tensor([values.numel() / num_channels])])
    ranks = own.new_empty(dist.get_world_size(), own.numel())
    dist.all_gather(list(ranks), own)
    means, variances, counts = ranks[:, :num_channels], ranks[:, num_channels:-1], ranks[:, -1:]
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return mean, variance, count


# torch.compile cannot trace these collectives: it compiles the code before and after them.
_global_norm = cast(Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]], torch.compiler.disable(_GlobalNorm.apply))


class GlobalBatchNorm(_BatchNorm):
    """nn.BatchNorm1d/2d/3d whose training statistics are those of the global batch, on CPU ranks.

    Ranks may hold different numbers of rows, or none. Not a subclass of torch's SyncBatchNorm, which DDP refuses on
    the CPU by its type.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: input (B, C, ...) with B this rank's rows -> the same shape and type."""
        if not self.training or not has_peers():
            return super().forward(input)
        # In single precision also where autocast passes bf16, as F.batch_norm computes the statistics.
        weight, bias = (None if part is None else part.float() for part in (self.weight, self.bias))
        output, mean, variance, count = _global_norm(input.float(), weight, bias, self.eps)
        self._track(mean, variance, count)
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

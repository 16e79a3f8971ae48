"""DistributedDataParallel around each network."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from trainer.config.strategies import DDPConfig
from trainer.module import TrainingModule
from trainer.network_strategy import NetworkStrategy


class ParallelNetworkStrategy(NetworkStrategy, DDPStrategy):
    """Base of the strategies for several ranks; each subclass wraps or shards one network at a time.

    Lightning wraps the whole LightningModule: with two networks every step leaves the other's parameters unused, and
    `training_step` runs inside DDP's forward, where several backwards are a special case. With wrapped networks a step
    is plain PyTorch.
    """

    @property
    def training_module(self) -> TrainingModule:
        """The module that is being trained. Raises: TypeError: it is no TrainingModule."""
        module = self.lightning_module
        if not isinstance(module, TrainingModule):
            raise TypeError(f"{type(module).__name__} is no TrainingModule")
        return module


class NetworkDDPStrategy(ParallelNetworkStrategy):
    """Each rank holds every network in full; gradients are averaged over ranks."""

    def __init__(self, options: DDPConfig | None, timeout: timedelta) -> None:
        # Running statistics of BatchNorm may differ between ranks; see TrainingModule.average_buffers.
        super().__init__(timeout=timeout, gradient_as_bucket_view=True, broadcast_buffers=False)
        if options is not None:
            self._ddp_kwargs |= {"static_graph": options.static_graph, "bucket_cap_mb": options.bucket_cap_mb}
        self.options = options

    def configure_ddp(self) -> None:
        """Lightning's hook: wrap each trained network instead of the module."""
        module = self.training_module
        for name, network in module.networks().items():
            if any(parameter.requires_grad for parameter in network.parameters()):
                module.wrapped[name] = self._wrap(network)

    def accumulating(self, network: str, last: bool) -> AbstractContextManager[object]:
        """See NetworkStrategy."""
        replica = self.training_module.wrapped[network]
        return nullcontext() if last or not isinstance(replica, DistributedDataParallel) else replica.no_sync()

    def _wrap(self, network: nn.Module) -> DistributedDataParallel:
        replica = DistributedDataParallel(network, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)
        if self.options is not None:
            compress_gradients(replica, self.options)
        return replica


def make_contiguous(network: nn.Module) -> None:
    """Store weights contiguously, as sharding requires; activations keep their memory format."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()


def compress_gradients(replica: DistributedDataParallel, options: DDPConfig) -> None:
    """Register the configured compression of a replica's gradients."""
    if options.gradient_compression == "powersgd":
        # One state per replica: it holds the accumulated error of the approximation.
        state = powerSGD_hook.PowerSGDState(
            process_group=None,
            matrix_approximation_rank=options.powersgd_rank,
            start_powerSGD_iter=options.powersgd_start_step,
        )
        replica.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif options.gradient_compression != "none":
        hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
        replica.register_comm_hook(torch.distributed.group.WORLD, hooks[options.gradient_compression])

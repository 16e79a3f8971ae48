"""DistributedDataParallel around each network."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from trainer.module import TrainingModule


class NetworkDDPStrategy(DDPStrategy):
    """Wraps each of a module's networks on its own.

    Lightning wraps the whole LightningModule: with two networks every step leaves the other's parameters unused, and
    `training_step` runs inside DDP's forward, where several backwards are a special case. Wrapped one by one, a step
    reads as plain PyTorch does.
    """

    def __init__(self, **options: Any) -> None:
        # Running statistics of BatchNorm differ between ranks until they are read; see TrainingModule.average_buffers.
        super().__init__(gradient_as_bucket_view=True, broadcast_buffers=False, **options)

    def configure_ddp(self) -> None:
        """Wrap the networks and leave the module itself as it is."""
        module = self.lightning_module
        if not isinstance(module, TrainingModule):
            raise TypeError(f"{type(module).__name__} is no TrainingModule")
        for name, network in module.networks().items():
            module.replicas[name] = self._wrap(network)

    def _wrap(self, network: torch.nn.Module) -> torch.nn.Module:
        if not any(parameter.requires_grad for parameter in network.parameters()):
            return network
        return DistributedDataParallel(network, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)

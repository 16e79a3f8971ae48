"""Sharded weights, gradients and optimizer state: torch's fully_shard, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from trainer.clock import StepClock
from trainer.collectives import broadcast_weights
from trainer.config.strategies import FSDP2Config
from trainer.errors import UserError
from trainer.strategies.ddp import ParallelNetworkStrategy, make_contiguous

CONTAINERS = (nn.ModuleList, nn.Sequential)


class FSDP2Strategy(ParallelNetworkStrategy):
    """Shards networks in place, so training and evaluation call them as they are.

    Lightning's ModelParallelStrategy expects the module to shard itself and writes checkpoints that only it can read;
    here checkpoints hold full tensors, or shards of them, under the same names as on a single device.

    gathers: whether a checkpoint's state holds full tensors, on rank 0; else each rank's holds its shards.
    """

    whole_networks = False

    def __init__(self, options: FSDP2Config, timeout: timedelta, gathers: bool) -> None:
        super().__init__(timeout=timeout)
        self.options, self.gathers = options, gathers

    # ---- setting up

    def setup(self, trainer: pl.Trainer) -> None:
        """Lightning's hook: shard, then build the optimizers over the shards."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        module = self.training_module
        if not any(isinstance(network, FSDPModule) for network in module.networks().values()):
            self.precision_plugin.convert_module(module)
            for network in module.networks().values():
                self._shard(network)
        move_unsharded(module, self.root_device)
        module._device = self.root_device
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def _shard(self, network: nn.Module) -> None:
        # As DistributedDataParallel does; once sharded they cannot be compared.
        broadcast_weights(network, self.root_device)
        make_contiguous(network)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        pinned = self.root_device.type == "cuda"
        policy = CPUOffloadPolicy(pin_memory=pinned) if self.options.cpu_offload else OffloadPolicy()
        for block in find_blocks(network):
            if self.options.activation_checkpointing:
                recompute_in_backward(block)
            fully_shard(
                block, mesh=mesh, reshard_after_forward=self.options.reshard_after_forward, offload_policy=policy
            )
        fully_shard(network, mesh=mesh, offload_policy=policy)
        if self.root_device.type == "cpu":
            time_collectives(network, self.training_module.clock)

    def teardown(self) -> None:
        """Lightning's hook; shards stay on their devices for the test after training."""
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    # ---- a step

    def accumulating(self, network: str, last: bool) -> AbstractContextManager[object]:
        """See NetworkStrategy."""
        replica = self.training_module.wrapped[network]
        assert isinstance(replica, FSDPModule)
        replica.set_requires_gradient_sync(last)
        return nullcontext()

    def gradient_norm(self, gradients: list[Tensor]) -> Tensor:
        """See NetworkStrategy; the norm of sharded gradients is itself sharded until it is reduced over ranks."""
        norm = super().gradient_norm(gradients)
        # Offloaded gradients are on the CPU, while ranks reduce on their devices.
        return cast("DTensor", norm.to(self.root_device)).full_tensor() if isinstance(norm, DTensor) else norm

    # ---- checkpoints: full tensors, on rank 0, or shards

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Lightning's hook: full weights, as on a single device; tied ones stay one tensor."""
        module = self.training_module
        owners = {name: id(tensor) for name, tensor in module.named_parameters(remove_duplicate=False)}
        gathered: dict[int, Any] = {}
        state: dict[str, Any] = {}
        for name, tensor in module.state_dict().items():
            owner = owners.get(name, id(tensor))
            if owner not in gathered:
                gathered[owner] = self._full(tensor)
            state[name] = gathered[owner]
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Lightning's hook: full state, as on a single device."""
        state = optimizer.state_dict()
        full = {
            number: {key: self._full(value) for key, value in entries.items()}
            for number, entries in state["state"].items()
        }
        return {"state": full, "param_groups": state["param_groups"]}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Lightning's hook, called before networks are sharded and after."""
        module = self.training_module
        current = module.state_dict()
        state = {name: shard_like(value, current.get(name)) for name, value in checkpoint["state_dict"].items()}
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Lightning's hook: each rank takes its shards from the full state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shards = {
                number: {key: shard_like(value, parameters[number]) for key, value in entries.items()}
                for number, entries in saved["state"].items()
            }
            optimizer.load_state_dict({"state": shards, "param_groups": saved["param_groups"]})

    def _full(self, value: Any) -> Any:
        """Gather a sharded tensor into rank 0's host memory; called on all ranks. Returns: None on the others."""
        if not isinstance(value, DTensor) or not self.gathers:
            return value
        # Offloaded shards go through the device, where ranks can exchange them.
        full = cast("DTensor", value.detach().to(self.root_device)).full_tensor()
        return full.cpu() if self.is_global_zero else None


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """The modules that are gathered as one: members with weights of the outermost lists and sequences."""
    blocks: list[nn.Module] = []
    for child in network.children():
        if isinstance(network, CONTAINERS) and not isinstance(child, CONTAINERS):
            blocks += [child] if any(True for _ in child.parameters()) else []
        else:
            blocks += find_blocks(child)
    return blocks


def recompute_in_backward(block: nn.Module) -> None:
    """Keep only a block's input for the backward. Raises: UserError: the block would track each batch twice."""
    if any(isinstance(layer, _BatchNorm) and layer.track_running_stats for layer in block.modules()):
        raise UserError(
            "strategy.activation_checkpointing=true: BatchNorm would count each batch twice",
            "use strategy.activation_checkpointing=false with this model",
        )
    # A wrapper module would change the names of weights.
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def time_collectives(network: nn.Module, clock: StepClock) -> None:
    """Count a sharded network's collectives as communication.

    On the CPU only, where they are synchronous: on a GPU they run in streams of their own, beside the computation.
    """
    for block in network.modules():
        if isinstance(block, FSDPModule):
            block.set_custom_all_gather(TimedAllGather(clock))
            block.set_custom_reduce_scatter(TimedReduceScatter(clock))


class TimedAllGather(DefaultAllGather):
    """torch's own, timed."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See DefaultAllGather."""
        with self.clock.communicating():
            return super().__call__(*args, **kwargs)


class TimedReduceScatter(DefaultReduceScatter):
    """torch's own, timed."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See DefaultReduceScatter."""
        with self.clock.communicating():
            return super().__call__(*args, **kwargs)


def move_unsharded(module: nn.Module, device: torch.device) -> None:
    """Move what is outside the sharded networks, which are on their devices already."""
    if not any(isinstance(child, FSDPModule) for child in module.modules()):
        module.to(device)
    elif not isinstance(module, FSDPModule):
        nn.Module._apply(module, lambda tensor: tensor.to(device), recurse=False)
        for child in module.children():
            move_unsharded(child, device)


def shard_like(value: Any, like: Any) -> Any:
    """This rank's shard of a full tensor, sharded as `like` is; any other value unchanged."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Every rank has read the full tensor, so nothing needs to be sent.
    shard = distribute_tensor(
        value.to(like.device_mesh.device_type), like.device_mesh, like.placements, src_data_rank=None
    )
    return shard.to(like.device)

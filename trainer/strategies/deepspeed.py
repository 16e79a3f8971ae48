"""DeepSpeed ZeRO, with an engine for each network: a GAN has two. The only module that imports deepspeed.

Lightning's DeepSpeedStrategy takes one optimizer, refuses the CPU, and writes a pickle per rank as a checkpoint.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from datetime import timedelta
from itertools import count, islice
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.strategies.ddp import ParallelNetworkStrategy, make_contiguous


class DeepSpeedStrategy(ParallelNetworkStrategy):
    """Engines hold the optimizers; batch, clipping and precision come from the run's configuration.

    engine_config: DeepSpeed's configuration of each engine.
    """

    whole_networks = False

    def __init__(self, engine_config: dict[str, Any], timeout: timedelta) -> None:
        super().__init__(timeout=timeout)
        self.engine_config = engine_config
        self.engines: dict[str, Any] = {}
        # Parameters of each optimizer group, before the engine flattens them.
        self.groups: dict[str, list[list[nn.Parameter]]] = {}
        self.active = ""

    @property
    def stage(self) -> int:
        """1 shards optimizer state, 2 also gradients, 3 also weights."""
        return self.engine_config["zero_optimization"]["stage"]

    # ---- setting up

    def setup(self, trainer: pl.Trainer) -> None:
        """Lightning's hook; the test after training uses the engines' networks as they are."""
        if self.engines:
            assert self.accelerator is not None
            self.accelerator.setup(trainer)
        else:
            super().setup(trainer)

    def configure_ddp(self) -> None:
        """Nothing to wrap yet: engines need the optimizers, see `setup_optimizers`."""

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Lightning's hook: build torch's optimizers over full weights, then an engine for each network."""
        super().setup_optimizers(trainer)
        deepspeed = import_deepspeed(self.root_device)
        module = self.training_module
        for (name, network), optimizer in zip(module.networks().items(), self.optimizers, strict=True):
            make_contiguous(network)
            self.groups[name] = [list(group["params"]) for group in optimizer.param_groups]
            engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=self.engine_config)
            self.engines[name] = module.wrapped[name] = engine

    def teardown(self) -> None:
        """Lightning's hook; weights stay in the engines for the test after training."""
        if not self.engines:
            super().teardown()
            return
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    # ---- a step

    def accumulating(self, network: str, last: bool) -> AbstractContextManager[object]:
        """See NetworkStrategy."""
        self.active = network
        self.engines[network].set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning's hook; the loss is normalised over the global batch already, so the engine must not scale it."""
        self.engines[self.active].backward(closure_loss, scale_wrt_gas=False)
        return closure_loss.detach()

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: pl.LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Any:
        """Lightning's hook: the engine clips, steps and clears gradients, and reports their global norm.

        It skips an update whose gradient is not finite, on all ranks and silently.
        """
        name = self._name_of(optimizer)
        engine = self.engines[name]
        engine.step()
        self.training_module.grad_norms[name] = torch.as_tensor(engine.get_global_grad_norm())
        if engine.optimizer.overflow:
            self.guard.found(optimizer)

    def clear_gradients(self, optimizer: Optimizer) -> None:
        """See NetworkStrategy; the engine clears them in its step."""

    # ---- checkpoints: full tensors, on rank 0, as on a single device

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Lightning's hook: full weights in float32; tied ones stay one tensor."""
        module = self.training_module
        state = module.state_dict()
        full: dict[int, Any] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) not in full:
                full[id(parameter)] = self._on_rank_0(full_parameter(parameter))
            state[name] = full[id(parameter)]
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Lightning's hook: the full state as torch's `state_dict`, parameters numbered in the order of the groups."""
        name = self._name_of(optimizer)
        self._link_state(name, optimizer)
        # Every flattened shard has the same entries: tensors of its size, and numbers such as Adam's step.
        flat = next((entries for entries in optimizer.state.values() if entries), {})
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        numbers = count()
        for options, parameters in zip(optimizer.param_groups, self.groups[name], strict=True):
            ids = list(islice(numbers, len(parameters)))
            groups.append({**options, "params": ids})
            if flat:
                state |= {i: self._full_entries(p, flat) for i, p in zip(ids, parameters, strict=True)}
        return {"state": state, "param_groups": groups}

    def _full_entries(self, parameter: nn.Parameter, flat: Mapping[str, Any]) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        return {
            key: self._on_rank_0(safe_get_full_optimizer_state(parameter, key))
            if is_sharded(key, value)
            else deepcopy(value)
            for key, value in flat.items()
        }

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Lightning's hook, called before the engines exist and after training."""
        if not self.engines or self.stage < 3:
            super().load_model_state_dict(checkpoint, strict)
            return
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        module, weights = self.training_module, checkpoint["state_dict"]
        for name, buffer in module.named_buffers():
            if name in weights:
                buffer.copy_(weights[name])
        for name, parameter in module.named_parameters():
            with GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                if self.is_global_zero:
                    parameter.copy_(weights[name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Lightning's hook: each rank takes its shards of the full state and of the float32 weights."""
        names = {id(parameter): name for name, parameter in self.training_module.named_parameters()}
        for optimizer, saved, name in zip(self.optimizers, checkpoint["optimizer_states"], self.engines, strict=True):
            for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True):
                group.update({key: value for key, value in old.items() if key != "params"})
            parameters = [parameter for group in self.groups[name] for parameter in group]
            if saved["state"]:
                self._allocate_state(name, optimizer, saved["state"][0])
            for number, parameter in enumerate(parameters):
                set_shard(parameter, checkpoint["state_dict"][names[id(parameter)]], None)
                for key, value in saved["state"].get(number, {}).items():
                    if is_sharded(key, value):
                        set_shard(parameter, value, key)

    def _allocate_state(self, name: str, optimizer: Optimizer, entries: Mapping[str, Any]) -> None:
        """Create the optimizer's state before its first step: zeros where it is sharded, else the saved value."""
        zero = self.engines[name].optimizer
        flats = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        for flat in flats:
            optimizer.state[flat] = {
                key: torch.zeros_like(flat) if is_sharded(key, value) else deepcopy(value)
                for key, value in entries.items()
            }
        self._link_state(name, optimizer)

    def _link_state(self, name: str, optimizer: Optimizer) -> None:
        """Link weights to their shards of the state; DeepSpeed does so before the later groups have any state."""
        if self.stage == 3 or not optimizer.state:
            return
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = self.engines[name].optimizer
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, optimizer.state)

    def _name_of(self, optimizer: Optimizer) -> str:
        return list(self.engines)[self.optimizers.index(optimizer)]

    def _on_rank_0(self, tensor: Tensor | None) -> Tensor | None:
        return tensor.detach().cpu() if tensor is not None and self.is_global_zero else None


def import_deepspeed(device: torch.device) -> Any:
    """Import the package with its accelerator set rather than detected, and with warnings only in its log."""
    os.environ["DS_ACCELERATOR"] = device.type
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if device.type == "cpu":
        # Its reduction over shared memory compiles for minutes at first use and has no timeout when a peer is lost.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def is_sharded(key: str, value: Any) -> bool:
    """Whether an entry of an optimizer's state has one element per element of a weight, and so is sharded."""
    return key != "step" and isinstance(value, Tensor)


def full_parameter(parameter: nn.Parameter) -> Tensor:
    """Gather a weight, in float32 also where it is trained in bf16; called on all ranks."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
    if full is not None:
        return full
    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def set_shard(parameter: Any, value: Tensor, key: str | None) -> None:
    """Set this rank's shard of a weight's optimizer state `key`, or of its float32 weight where `key` is None."""
    from deepspeed import utils

    if not hasattr(parameter, "ds_id"):
        value = value.to(parameter.device)
        if key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)
        return
    # At stage 3 the last rank's shard is padded, which DeepSpeed's own function for full tensors does not expect.
    size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank()
    padded = F.pad(value.flatten(), (0, size * torch.distributed.get_world_size() - value.numel()))
    shard = padded[rank * size : (rank + 1) * size].to(parameter.device)
    if key is None:
        utils.safe_set_local_fp32_param(parameter, shard)
    else:
        utils.safe_set_local_optimizer_state(parameter, shard, key)

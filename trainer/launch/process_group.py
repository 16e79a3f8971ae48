"""The process group of a rank: the only place that creates and destroys it."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.schema import Config
from trainer.config.strategies import FSDP2Config, shards_state
from trainer.faults.flight_recorder import recorder_environment
from trainer.launch.environment import local_address, rank_environment
from trainer.world import World

if TYPE_CHECKING:
    from trainer.launch.peers import Peers


class process_group:  # noqa: N801 - a context manager that reads as a function
    """The default process group of a rank: over loopback on one host, over the configured interface on several.

    A single rank without a sharding strategy gets none. Raises: UserError: the other nodes cannot be reached as
    configured. PeerLost: a rank of another node has ended or cannot be reached.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.launch, self.world = config.launch, world
        self.needed = world.world_size > 1 or shards_state(config.strategy)
        # The norm of gradients that FSDP2 keeps in host memory is reduced there, which NCCL cannot do.
        self.sums_on_host = isinstance(config.strategy, FSDP2Config) and config.strategy.cpu_offload
        self.peers: Peers | None = None
        self.recorded: Path | None = None

    def __enter__(self) -> None:
        if not self.needed:
            return
        import torch

        world, launch = self.world, self.launch
        for name, value in rank_environment(world, launch).items():
            os.environ.setdefault(name, value)
        on_gpus = world.accelerator == "cuda"
        if on_gpus and world.world_size > 1:
            self.recorded = Path(tempfile.mkdtemp(prefix="trainer-nccl-"))
            for name, value in recorder_environment(self.recorded).items():
                os.environ.setdefault(name, value)
        backend = "nccl" if on_gpus else "gloo"
        if on_gpus and self.sums_on_host:
            backend = "cpu:gloo,cuda:nccl"
        device = torch.device("cuda", world.gpu_index) if on_gpus and world.world_size > 1 else None
        store = None
        if world.world_size == 1:
            store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        elif world.launcher == "slurm":
            from trainer.launch.rendezvous import step_store

            store = step_store(world, launch.interface if world.num_nodes > 1 else None, launch.timeout_s)
        else:
            from trainer.launch.rendezvous import agent_store

            store = agent_store(world, launch.timeout_s)
        torch.distributed.init_process_group(
            backend,
            timeout=timedelta(seconds=launch.timeout_s),
            rank=world.rank,
            world_size=world.world_size,
            store=store,
            device_id=device,
        )
        if world.num_nodes > 1:
            from trainer.launch.peers import Peers

            self.peers = Peers(world, local_address(world, launch))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import torch

        if self.peers is not None and error is not None and (lost := self.peers.explain(error)) is not None:
            raise lost from error
        # After an error the peers may be gone, and destroying the group would wait for them.
        if (kind is None or self.world.world_size == 1) and self.needed and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if self.recorded is not None:
            shutil.rmtree(self.recorded, ignore_errors=True)

"""Compares the weights of data-parallel ranks bit by bit: equal gradients on equal weights keep them equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from trainer.collectives import all_gather_json
from trainer.config.schema import Config
from trainer.errors import RankFailure
from trainer.module import TrainingModule
from trainer.world import World

MAX_NAMES = 3
BIT_TYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicasDiffer(RankFailure):
    """Ranks that should hold equal weights do not. The message names the ranks and the tensors."""


def build_verification(config: Config, world: World) -> list[pl.Callback]:
    """The comparison, where faults.verify_replicas_every_n_steps asks for it and there are several ranks."""
    every_n_steps = config.faults.verify_replicas_every_n_steps
    return [VerifyReplicas(every_n_steps)] if every_n_steps is not None and world.world_size > 1 else []


class VerifyReplicas(pl.Callback):
    """Compares every so many steps, before a checkpoint of the step is saved."""

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook. Raises: ReplicasDiffer: on all ranks."""
        if trainer.global_step % self.every_n_steps:
            return
        assert isinstance(pl_module, TrainingModule)
        with pl_module.clock.within("communication"):
            ranks = all_gather_json(checksums(pl_module.networks()))
        problem = difference(ranks)
        if problem is not None:
            advice = "a memory or a device may be faulty; the same command resumes from the newest checkpoint"
            raise ReplicasDiffer(f"step {trainer.global_step}: {problem}\n{advice}")


def checksums(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    """The sum of the bits of each weight as integers, by name; any single bit that differs changes it."""
    weights = {f"{n}.{name}": p for n, network in networks.items() for name, p in network.named_parameters()}
    sums: list[Tensor] = [
        p.detach().contiguous().view(BIT_TYPES[p.element_size()]).sum(dtype=torch.int64) for p in weights.values()
    ]
    # One copy from the device.
    return dict(zip(weights, torch.stack(sums).tolist(), strict=True))


def difference(ranks: Sequence[Mapping[str, int]]) -> str | None:
    """Which ranks hold other weights than most do; None where all are equal. Args: ranks: checksums by rank."""
    counts = Counter(tuple(sums.values()) for sums in ranks)
    if len(counts) == 1:
        return None
    (common, number), *_ = counts.most_common(1)
    others = [rank for rank, sums in enumerate(ranks) if tuple(sums.values()) != common]
    pairs = zip(ranks[0], common, strict=True)
    names = [name for name, expected in pairs if any(ranks[rank][name] != expected for rank in others)]
    listed = ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    if 2 * number <= len(ranks):
        return f"the ranks hold different weights ({listed}), and no majority says which is right"
    who = f"rank {', '.join(map(str, others))}"
    return f"{who} differs from the other {number} in {listed}"

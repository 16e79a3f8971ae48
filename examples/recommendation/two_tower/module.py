"""Training of the two towers with in-batch negatives from the whole global batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.collectives import all_gather_bytes, has_peers
from trainer.data.batch import StepBatch
from trainer.data.module import DataModule
from trainer.module import StepSums, TrainingModule

from .config import TwoTowerRun
from .data import HistoriesData, PairBatch
from .network import build_towers, encoder_config

K = 10


class TwoTowerModule(TrainingModule[TwoTowerRun]):
    """One softmax over the items of the global batch for each of its users.

    The loss of a pair depends on all other pairs, so it is no sum over micro-batches. A step gathers the vectors of all
    ranks and micro-batches, computes the loss and its gradient with respect to the vectors on every rank, and each
    rank takes the gradient of its own vectors back through the encoder (Gao et al. 2021, arXiv 2101.06983). So loss
    and gradient depend neither on the number of ranks nor on batch.micro_size. Several micro-batches are encoded
    twice, first without a graph.

    log_shares (items,) float32: logarithm of each item's share of the training pairs.
    """

    log_shares: Tensor

    def __init__(self, config: TwoTowerRun, data: HistoriesData) -> None:
        super().__init__(config)
        assert data.tokenizer is not None
        self.model = build_towers(encoder_config(config.model, len(data.tokenizer)), config.model)
        shares = torch.from_numpy(data.item_shares()).log().float()
        self.register_buffer("log_shares", shares, persistent=False)
        self.evaluated_rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def networks(self) -> Mapping[str, nn.Module]:
        """See TrainingModule."""
        return {"model": self.model}

    def training_step(self, batch: StepBatch[PairBatch], batch_idx: int) -> StepSums:
        """See TrainingModule."""
        network, micros = self.wrapped["model"], batch.micro_batches
        vectors: list[tuple[Tensor, Tensor]] = []
        if len(micros) > 1:
            with torch.no_grad():
                vectors = [vectors_of(network, micro) for micro in micros]
        totals: StepSums = {}
        gradients: list[tuple[Tensor, Tensor]] = []
        for number, micro in enumerate(self.accumulate(batch, "model")):
            users, items = vectors_of(network, micro)
            if not number:
                gradients, totals = self.step_gradients(micros, vectors or [(users.detach(), items.detach())])
            by_user, by_item = gradients[number]
            # Its gradient is that of the step's loss with respect to this micro-batch.
            self.manual_backward(self.global_mean((users * by_user).sum() + (items * by_item).sum(), batch))
        self.optimize("model")
        return totals

    def step_gradients(
        self, micros: list[PairBatch], vectors: list[tuple[Tensor, Tensor]]
    ) -> tuple[list[tuple[Tensor, Tensor]], StepSums]:
        """Gradients of the summed loss of the global batch with respect to this rank's vectors.

        Args: vectors: users and items (B, D) of each micro-batch.
        Returns: (for each micro-batch the gradients of users and items, this rank's sums).
        """
        users = torch.cat([user for user, _ in vectors]).requires_grad_()
        items = torch.cat([item for _, item in vectors]).requires_grad_()
        valid = torch.cat([torch.arange(len(m.indices), device=users.device) < m.num_valid for m in micros])
        targets, history = torch.cat([m.target_items for m in micros]), torch.cat([m.history_items for m in micros])
        rows = torch.cat([targets[:, None], history, valid[:, None]], dim=1)
        with torch.enable_grad():
            all_users, all_items, all_rows = gather_rows(users), gather_rows(items), gather_rows(rows)
            losses, ranks = self.losses(all_users, all_items, all_rows[:, 0], all_rows[:, 1:-1], all_rows[:, -1].bool())
            by_user, by_item = torch.autograd.grad(losses.sum(), [users, items])
        sizes = [len(m.indices) for m in micros]
        own = own_rows(losses.detach(), len(users))
        hits = own_rows(ranks == 0, len(users)) & valid
        sums: StepSums = {"loss": own.sum(), "accuracy": hits.sum()}
        return list(zip(by_user.split(sizes), by_item.split(sizes), strict=True)), sums

    def losses(
        self, users: Tensor, items: Tensor, targets: Tensor, history: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of each pair, and how many items of the batch come before its own.

        Of a row's negatives are left out: other copies of its target, the items of its history, and fillers.

        Shapes: users, items (N, D); targets (N,), history (N, H): numbers of items; valid (N,) bool.
        Returns: losses (N,) in nats, 0 for fillers; ranks (N,) int64.
        """
        logits = users.float() @ items.float().T / self.config.task.temperature
        logits = logits - self.config.task.logq * self.log_shares[targets]
        known = (targets == targets[:, None]) | (history[:, :, None] == targets).any(1)
        known.fill_diagonal_(False)
        logits = logits.masked_fill(known | ~valid, float("-inf"))
        own = logits.diagonal()
        losses = torch.where(valid, torch.logsumexp(logits, dim=1) - own, 0.0)
        return losses, (logits > own[:, None]).sum(1)

    # ---- evaluation

    def evaluation_step(self, batch: PairBatch, metrics_prefix: str) -> None:
        """See TrainingModule: the vectors are kept until all are there."""
        users, items = vectors_of(self.model, batch)
        rows = users.float(), items.float(), batch.target_items
        user, item, target = (value[: batch.num_valid].cpu() for value in rows)
        self.evaluated_rows.append((user, item, target))

    def evaluation_metrics(self, metrics_prefix: str) -> Mapping[str, float]:
        """See TrainingModule: how the different targets of the whole set are ranked for each of its histories.

        recall: share of histories whose target is among the first 10. mrr: mean of 1 / rank. loss: in nats, without
        the logQ correction.
        """
        columns = [torch.cat(column).numpy() for column in zip(*self.evaluated_rows, strict=True)]
        self.evaluated_rows = []
        width = columns[0].shape[1]
        users, items = (gather_array(column).reshape(-1, width) for column in columns[:2])
        targets = gather_array(columns[2])
        _, first, numbers = np.unique(targets, return_index=True, return_inverse=True)
        logits = torch.from_numpy(users @ items[first].T) / self.config.task.temperature
        own = logits[torch.arange(len(targets)), torch.from_numpy(numbers)]
        ranks = 1 + (logits > own[:, None]).sum(1)
        return {
            "loss": float(F.cross_entropy(logits.double(), torch.from_numpy(numbers))),
            "mrr": float((1.0 / ranks.double()).mean()),
            f"recall_at_{K}": float((ranks <= K).double().mean()),
        }


def vectors_of(network: nn.Module, micro: PairBatch) -> tuple[Tensor, Tensor]:
    """User and item vectors of a micro-batch, each (B, D)."""
    return network(micro.input_ids, micro.attention_mask, micro.history, micro.targets)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all ranks in the order of ranks; with several ranks B may differ.

    A gradient reaches this rank's own rows only: every rank computes the whole loss.
    """
    if not has_peers():
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    parts = [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
    parts[dist.get_rank()] = rows
    return torch.cat(parts)


def own_rows(values: Tensor, num_rows: int) -> Tensor:
    """This rank's part of what was computed on the rows of `gather_rows`. Args: num_rows: that this rank gave."""
    if not has_peers():
        return values
    sizes = gather_rows(torch.tensor([num_rows], device=values.device))
    return values.split(sizes.tolist())[dist.get_rank()]


def gather_array(values: np.ndarray) -> np.ndarray:
    """The values of all ranks, flat, in the order of ranks."""
    return np.concatenate([np.frombuffer(part, dtype=values.dtype) for part in all_gather_bytes(values.tobytes())])


def build_module(config: TwoTowerRun, data: DataModule) -> TwoTowerModule:
    """See TaskSpec.module."""
    assert isinstance(data, HistoriesData)
    return TwoTowerModule(config, data)

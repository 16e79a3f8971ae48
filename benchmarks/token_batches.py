"""Batches of SST-2: the token buffer against `datasets` in torch format.

    python -m benchmarks.token_batches [../shared/data/sst2]

All sides walk the same global batches and give the same padded tensors. `datasets` is read in both usual ways: a batch
at a time, and a row at a time by torch's DataLoader with transformers' own padding. About 3 minutes; a dated file under
benchmarks/results/.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from benchmarks.result_file import write_comparison_result
from benchmarks.sst2_texts import PAD_ID, sst2_buffer
from trainer.bench.compare import compare
from trainer.bench.comparison import Question
from trainer.data.texts.buffer import TokenBuffer, TokenSet
from trainer.data.texts.length_sampler import LengthGroupedSampler
from trainer.verbs.bench.loading import Tensors, measured

BATCH_SIZE, NUM_BATCHES, NUM_ROUNDS = 32, 300, 9
GOAL = 15.0


class Contest:
    """The same batches, three ways."""

    def __init__(self, buffer: TokenBuffer) -> None:
        import datasets

        labels = np.arange(len(buffer)) % 2
        self.tokens = TokenSet(buffer, labels, PAD_ID, max_length=128)
        self.batches = LengthGroupedSampler(buffer.lengths, BATCH_SIZE, 50, 0).epoch_batches(0)[:NUM_BATCHES]
        rows = [buffer.tokens[a:b].tolist() for a, b in zip(buffer.offsets, buffer.offsets[1:], strict=False)]
        table = datasets.Dataset.from_dict({"input_ids": rows, "labels": labels})
        self.dataset = table.with_format("torch")

    def token_buffer(self) -> Iterator[Tensors]:
        """Ours: one gather a batch."""
        for indices in self.batches:
            batch = self.tokens.gather(indices, len(indices), 0)
            mask = batch.attention_mask()
            yield named(batch.input_ids, torch.ones_like(batch.input_ids) if mask is None else mask, batch.labels)

    def by_batch(self) -> Iterator[Tensors]:
        """datasets, one read a batch, padded by torch."""
        for indices in self.batches:
            rows = self.dataset[indices.tolist()]
            ids = pad_sequence(rows["input_ids"], batch_first=True, padding_value=PAD_ID)
            lengths = torch.tensor([len(row) for row in rows["input_ids"]])
            yield named(ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long(), rows["labels"])

    def by_loader(self) -> Iterable[Tensors]:
        """datasets through torch's DataLoader, padded by transformers' collator."""
        from transformers import BertTokenizer, DataCollatorWithPadding

        collate = DataCollatorWithPadding(BertTokenizer(vocab={"[PAD]": PAD_ID, "[UNK]": 1}))
        order = [indices.tolist() for indices in self.batches]
        for rows in DataLoader(self.dataset, batch_sampler=order, collate_fn=collate):  # pyright: ignore[reportArgumentType]
            yield named(rows["input_ids"], rows["attention_mask"], rows["labels"])


def named(input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensors:
    """A batch in the same order on all sides."""
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def main() -> int:
    """Measure, print and write. Returns: 0 when the goal is met."""
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else None
    buffer, what = sst2_buffer(path)
    contest = Contest(buffer)
    question = Question(
        "token_batches",
        f"{BATCH_SIZE} texts of like length from {what}",
        "batch",
        "CPU time of the process",
        "every value of every batch, by sums weighted by place",
        1e-9,
    )
    by_batch, by_loader = "datasets, one read a batch, pad_sequence", "datasets, DataLoader, DataCollatorWithPadding"
    ways = {"token buffer": contest.token_buffer, by_batch: contest.by_batch, by_loader: contest.by_loader}
    sides = {name: measured(way, NUM_BATCHES) for name, way in ways.items()}
    comparison = compare(question, sides, NUM_ROUNDS, f"python -m benchmarks.token_batches {path or ''}".strip())
    return write_comparison_result("token-batches", comparison, {by_batch: GOAL, by_loader: GOAL})


if __name__ == "__main__":
    sys.exit(main())

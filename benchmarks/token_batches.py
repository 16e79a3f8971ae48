"""Batches of SST-2: the token buffer against `datasets` in torch format.

    python -m benchmarks.token_batches [../shared/data/sst2]

Both walk the same global batches and give the same padded tensors, which are compared first. They are then timed in
turns in one process, ours twice a round: how far those two differ is the error of the ratio. `datasets` is read in
both usual ways: a row at a time by torch's DataLoader with transformers' own padding, and a batch at a time. Writes a
dated file under benchmarks/results/.
"""

from __future__ import annotations

import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from benchmarks.result_file import surroundings, write_result
from benchmarks.sst2_texts import PAD_ID, sst2_buffer
from trainer.data.texts.buffer import TokenBuffer, TokenSet
from trainer.data.texts.length_sampler import LengthGroupedSampler

BATCH_SIZE, NUM_BATCHES, NUM_ROUNDS, PASSES_A_ROUND = 32, 300, 9, 8
GOAL = 15.0

Batch = tuple[Tensor, Tensor, Tensor]
Reader = Callable[[], Iterator[Batch]]


class Contest:
    """The same batches (input_ids, attention_mask, labels), three ways."""

    def __init__(self, buffer: TokenBuffer) -> None:
        import datasets

        labels = np.arange(len(buffer)) % 2
        self.tokens = TokenSet(buffer, labels, PAD_ID, max_length=128)
        self.batches = LengthGroupedSampler(buffer.lengths, BATCH_SIZE, 50, 0).epoch_batches(0)[:NUM_BATCHES]
        rows = [buffer.tokens[a:b].tolist() for a, b in zip(buffer.offsets, buffer.offsets[1:], strict=False)]
        table = datasets.Dataset.from_dict({"input_ids": rows, "labels": labels})
        self.dataset = table.with_format("torch")

    def token_buffer(self) -> Iterator[Batch]:
        """Ours: one gather a batch."""
        for indices in self.batches:
            batch = self.tokens.gather(indices, len(indices), 0)
            mask = batch.attention_mask()
            yield batch.input_ids, torch.ones_like(batch.input_ids) if mask is None else mask, batch.labels

    def by_batch(self) -> Iterator[Batch]:
        """datasets, one read a batch, padded by torch."""
        for indices in self.batches:
            rows = self.dataset[indices.tolist()]
            ids = pad_sequence(rows["input_ids"], batch_first=True, padding_value=PAD_ID)
            lengths = torch.tensor([len(row) for row in rows["input_ids"]])
            yield ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long(), rows["labels"]

    def by_loader(self) -> Iterator[Batch]:
        """datasets through torch's DataLoader, padded by transformers' collator."""
        from transformers import BertTokenizer, DataCollatorWithPadding

        collate = DataCollatorWithPadding(BertTokenizer(vocab={"[PAD]": PAD_ID, "[UNK]": 1}))
        order = [indices.tolist() for indices in self.batches]
        for rows in DataLoader(self.dataset, batch_sampler=order, collate_fn=collate):  # pyright: ignore[reportArgumentType]
            yield rows["input_ids"], rows["attention_mask"], rows["labels"]

    def check(self) -> None:
        """Raises: AssertionError: a tensor differs."""
        for batches in zip(self.token_buffer(), self.by_batch(), self.by_loader(), strict=True):
            for other in batches[1:]:
                assert all(torch.equal(a, b) for a, b in zip(batches[0], other, strict=True))


def sequences_per_s(reader: Reader, passes: int) -> float:
    """Throughput by the CPU time of the process."""
    start, count = time.process_time(), 0
    for _ in range(passes):
        count += sum(len(labels) for _, _, labels in reader())
    return count / (time.process_time() - start)


def measure(ours: Reader, others: dict[str, Reader]) -> dict[str, list[float]]:
    """Time everything in turns."""
    rates: dict[str, list[float]] = {"ours": [], "again": [], **{name: [] for name in others}}
    for _ in range(NUM_ROUNDS):
        rates["ours"].append(sequences_per_s(ours, PASSES_A_ROUND))
        for name, reader in others.items():
            rates[name].append(sequences_per_s(reader, 1))
        rates["again"].append(sequences_per_s(ours, PASSES_A_ROUND))
    return rates


def main() -> int:
    """Measure, print and write. Returns: 0 when the goal is met."""
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else None
    buffer, what = sst2_buffer(path)
    contest = Contest(buffer)
    contest.check()
    others: dict[str, Reader] = {
        "one read a batch, pad_sequence": contest.by_batch,
        "DataLoader, DataCollatorWithPadding": contest.by_loader,
    }
    rates = measure(contest.token_buffer, others)
    text, met = report(rates, list(others), what, path)
    write_result("token-batches", text)
    return 0 if met else 1


def report(rates: dict[str, list[float]], others: list[str], what: str, path: str | None) -> tuple[str, bool]:
    """The dated file, and whether the goal is met against every other."""
    both = [(a + b) / 2 for a, b in zip(rates["ours"], rates["again"], strict=True)]
    same = sorted(a / b for a, b in zip(rates["ours"], rates["again"], strict=True))
    rows, medians = [], []
    for name in others:
        ratios = [a / b for a, b in zip(both, rates[name], strict=True)]
        medians.append(statistics.median(ratios))
        ours, theirs = statistics.median(both), statistics.median(rates[name])
        rows.append(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {medians[-1]:.1f} | {min(ratios):.1f} |")
    met = min(medians) >= GOAL
    lines = [
        f"# Batches of tokens, {datetime.date.today()}",
        "",
        f"    python -m benchmarks.token_batches{f' {path}' if path else ''}",
        "",
        f"{what}, {NUM_BATCHES} batches of {BATCH_SIZE} of like length, equal tensors from all. {NUM_ROUNDS} rounds in",
        f"turns, CPU time of the process. Goal: {GOAL:.0f} times; {'met' if met else 'missed'}.",
        "",
        "| `datasets` in torch format | ours, sequences/s | theirs, sequences/s | ratio, median | ratio, worst round |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Ours against ours: {same[1]:.2f} to {same[-2]:.2f} without the best and the worst round.",
        "",
        *surroundings("no GPU; one thread", "torch", "datasets", "transformers", "numpy"),
        "",
    ]
    return "\n".join(lines), met


if __name__ == "__main__":
    sys.exit(main())

"""Training a small BERT on SST-2's lengths: padding to 128, padding to each batch's longest, batches of like length.

    python -m benchmarks.bert_training [../shared/data/sst2]

The model is BERT-mini (4 layers, 256 wide; Turc et al. 2019) from random weights, since throughput does not depend on
them. Each round times some steps of every way in turns, like-length batches twice: how far those two differ is the
error of the ratios. Padding is that of whole epochs. Writes a dated file under benchmarks/results/.
"""

from __future__ import annotations

import datetime
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks.result_file import surroundings, write_result
from benchmarks.sst2_texts import PAD_ID, VOCAB_SIZE, sst2_buffer
from trainer.data.texts.buffer import TokenBuffer, TokenSet
from trainer.data.texts.length_sampler import LengthGroupedSampler

BATCH_SIZE, MAX_LENGTH, POOL_BATCHES, NUM_ROUNDS = 32, 128, 50, 5
GOALS = {"padded to 128": 3.5, "padded to each batch's longest": 1.8}
PADDING_GOAL = 0.08


@dataclass(frozen=True)
class Way:
    """How batches are made. steps: timed in a round, so that each way takes some seconds."""

    name: str
    tokens: TokenSet
    batches: Sequence[np.ndarray]
    steps: int

    def padding_fraction(self) -> float:
        """Share of padding among all positions of an epoch."""
        lengths = self.tokens.buffer.lengths
        widths = [self.tokens.width or lengths[batch].max() for batch in self.batches]
        return 1 - lengths.sum() / sum(w * len(batch) for w, batch in zip(widths, self.batches, strict=True))


def ways(buffer: TokenBuffer) -> list[Way]:
    """Three, of which the first two shuffle alike."""
    labels = np.arange(len(buffer)) % 2
    padded = TokenSet(buffer, labels, PAD_ID, MAX_LENGTH, width=MAX_LENGTH)
    dynamic = TokenSet(buffer, labels, PAD_ID, MAX_LENGTH)
    shuffled = LengthGroupedSampler(buffer.lengths, BATCH_SIZE, 1, 0).epoch_batches(0)
    grouped = LengthGroupedSampler(buffer.lengths, BATCH_SIZE, POOL_BATCHES, 0).epoch_batches(0)
    fixed, longest = GOALS
    return [
        Way(fixed, padded, shuffled, 6),
        Way(longest, dynamic, shuffled, 16),
        Way("like length", dynamic, grouped, 80),
    ]


class Trainee:
    """A model and its optimizer, stepped as in training."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
        )
        self.model = AutoModelForSequenceClassification.from_config(config).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)

    def sequences_per_s(self, way: Way, first: int) -> float:
        """Throughput of a way's steps from `first` on, by the CPU time of the process."""
        start, count = time.process_time(), 0
        for indices in way.batches[first : first + way.steps]:
            batch = way.tokens.gather(indices, len(indices), 0)
            logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask()).logits
            F.cross_entropy(logits, batch.labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            count += len(indices)
        return count / (time.process_time() - start)


def main() -> int:
    """Measure, print and write. Returns: 0 when the goals are met."""
    torch.set_num_threads(1)
    path = sys.argv[1] if len(sys.argv) > 1 else None
    buffer, what = sst2_buffer(path)
    trainee, all_ways = Trainee(), ways(buffer)
    rates: dict[str, list[float]] = {name: [] for name in (*(way.name for way in all_ways), "again")}
    trainee.sequences_per_s(all_ways[1], 0)
    for number in range(NUM_ROUNDS):
        for way in all_ways:
            rates[way.name].append(trainee.sequences_per_s(way, number * way.steps))
        rates["again"].append(trainee.sequences_per_s(all_ways[-1], number * all_ways[-1].steps))
    text, met = report(all_ways, rates, what, path)
    write_result("bert-training", text)
    return 0 if met else 1


def report(all_ways: list[Way], rates: dict[str, list[float]], what: str, path: str | None) -> tuple[str, bool]:
    """The dated file, and whether all goals are met."""
    ours = [(a + b) / 2 for a, b in zip(rates["like length"], rates["again"], strict=True)]
    same = [a / b for a, b in zip(rates["like length"], rates["again"], strict=True)]
    rows, met = [], all_ways[-1].padding_fraction() < PADDING_GOAL
    for way in all_ways:
        ratios = [a / b for a, b in zip(ours, rates[way.name], strict=True)]
        ratio, goal = statistics.median(ratios), GOALS.get(way.name)
        met = met and (goal is None or ratio >= goal)
        cells = ["", "", ""] if goal is None else [f"{ratio:.2f}", f"{min(ratios):.2f}", str(goal)]
        rate = statistics.median(ours if goal is None else rates[way.name])
        rows.append(f"| {' | '.join([way.name, f'{rate:.1f}', f'{way.padding_fraction():.1%}', *cells])} |")
    lines = [
        f"# Training BERT on SST-2's lengths, {datetime.date.today()}",
        "",
        f"    python -m benchmarks.bert_training{f' {path}' if path else ''}",
        "",
        f"BERT-mini (4 layers, 256 wide), batches of {BATCH_SIZE}, {what}; forward, backward and AdamW.",
        f"{NUM_ROUNDS} rounds in turns, CPU time of the process. Goals, and padding of batches of like length under",
        f"{PADDING_GOAL:.0%}: {'met' if met else 'missed'}.",
        "",
        "| batches | sequences/s | padding | like length is faster, median | worst round | goal |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Like length against itself: {min(same):.2f} to {max(same):.2f}.",
        "",
        *surroundings("no GPU; one thread", "torch", "transformers", "numpy"),
        "",
    ]
    return "\n".join(lines), met


if __name__ == "__main__":
    sys.exit(main())

"""The sides of `bench bucketing`: training steps on batches of texts that are put together in three ways."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch

from trainer.bench.rounds import Sample
from trainer.data.samplers import ShuffledSampler
from trainer.data.texts.buffer import TokenSet
from trainer.errors import UserError
from trainer.module import SupervisedModule
from trainer.verbs.bench.loops import built, optimizer_and_schedule

# Global batches whose loss is compared.
COMPARED_BATCHES = 2


@dataclass(frozen=True)
class Way:
    """Batches of an epoch, each (B,) int64 indices, and the set that pads them. grouped: by length."""

    tokens: TokenSet
    batches: Sequence[np.ndarray]
    grouped: bool = False

    def widths(self) -> np.ndarray:
        """Tokens of a row of each batch, padding included."""
        lengths, fixed = self.tokens.buffer.lengths, self.tokens.width
        return np.array([fixed or self.tokens.batch_width(int(lengths[batch].max())) for batch in self.batches])

    def padding_share(self) -> float:
        """Share of padding among all positions of the epoch."""
        lengths = self.tokens.buffer.lengths
        positions = (self.widths() * [len(batch) for batch in self.batches]).sum()
        return 1 - sum(lengths[batch].sum() for batch in self.batches) / positions

    def typical(self, number: int) -> list[np.ndarray]:
        """Whole batches that stand for the epoch: evenly spaced among them in the order of their widths."""
        whole = [at for at in np.argsort(self.widths(), kind="stable") if len(self.batches[at]) == len(self.batches[0])]
        # The middle of each of `number` equal parts.
        places = ((np.arange(number) + 0.5) * len(whole) / number).astype(int)
        return [self.batches[whole[place]] for place in places]


def sides(words: Sequence[str], steps: int) -> dict[str, Callable[[], Sample]]:
    """A measurement for each way. Raises: UserError: the task does not train on texts."""
    prepared, data, module = built(words)
    train, config = data.sets["train"], prepared.config
    if not isinstance(train, TokenSet):
        raise UserError(f"task={config.task.name}: bench bucketing needs texts, as task=bert has them")
    shuffled = ShuffledSampler(len(train), config.batch.global_size, config.seed).epoch_batches(0)
    ways = {
        f"shuffled, padded to {train.max_length}": Way(replace(train, width=train.max_length), shuffled),
        "shuffled, padded to the longest": Way(train, shuffled),
        "grouped by length": Way(train, data.train_sampler().epoch_batches(0), grouped=True),
    }
    texts = np.concatenate(shuffled[:COMPARED_BATCHES])
    computed = {name: {"loss": mean_loss(module, way, texts)} for name, way in ways.items()}
    optimizer, _ = optimizer_and_schedule(config, module)

    def train_on(way: Way, batches: Sequence[np.ndarray]) -> float:
        """CPU seconds of a step."""
        start_s = time.process_time()
        for batch in batches:
            loss, _ = module.loss(module.model, way.tokens.gather(batch, len(batch), 0))
            (loss / len(batch)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return (time.process_time() - start_s) / len(batches)

    def measured(name: str) -> Callable[[], Sample]:
        way = ways[name]
        batches = way.typical(steps)
        train_on(way, batches[-1:])  # allocates memory for the widest
        tokens = fmean(float(way.tokens.buffer.lengths[batch].sum()) for batch in batches)
        figures = {"padding of an epoch": way.padding_share(), "real tokens of a step": tokens}
        return lambda: Sample(train_on(way, batches), computed[name], figures=figures)

    return {name: measured(name) for name in ways}


@torch.no_grad()
def mean_loss(module: SupervisedModule, way: Way, texts: np.ndarray) -> float:
    """Of texts in the batches that this way makes of them, without dropout. Args: texts (N,) int64 indices."""
    if way.grouped:
        texts = texts[np.argsort(way.tokens.buffer.lengths[texts], kind="stable")]
    network, size = module.model.eval(), len(way.batches[0])
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]
    losses = [module.loss(network, way.tokens.gather(batch, len(batch), 0))[0] for batch in batches]
    network.train()
    return float(sum(losses)) / len(texts)

"""The sides of `bench data`: the first batches of an epoch by the task's loader, and by torch's, sample by sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from trainer.bench.rounds import Sample
from trainer.clock import StepClock
from trainer.config.schema import Config
from trainer.data.loaders import StepLoader
from trainer.data.module import DataModule
from trainer.data.samplers import Share, StepSampler
from trainer.data.texts.buffer import TokenSet
from trainer.errors import UserError
from trainer.verbs.prepare import PreparedRun

# A sample takes about as long at least, so that the start of a pass does not count.
SAMPLE_S = 0.5

# What a batch or a sample holds, by the name of a field.
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class FirstSteps:
    """The first steps of each epoch of a sampler."""

    sampler: StepSampler
    num_steps: int

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """See StepSampler."""
        return self.sampler.epoch_batches(epoch)[: self.num_steps]


def sides(prepared: PreparedRun, num_batches: int) -> dict[str, Callable[[], Sample]]:
    """A measurement for each side.

    Raises: UserError: the data cannot be read, or its batches are not made of one row for each sample.
    """
    torch.set_num_threads(1)
    data = prepared.task.build_data(prepared.config)
    data.load(torch.device("cpu"))
    sampler = data.train_sampler()
    steps = FirstSteps(sampler, min(num_batches, sampler.num_steps))
    loader = step_loader(prepared.config, data, steps)

    def ours() -> Iterable[Tensors]:
        return (tensors_of(micro) for step in loader for micro in step.micro_batches)

    order = [batch.tolist() for batch in steps.epoch_batches(0)]
    found = {"StepLoader": measured(ours, steps.num_steps)}
    for name, ready in (("DataLoader, reading one by one", None), ("DataLoader, ready samples", order)):
        samples = Samples(data.sets["train"], prepared.config.task.name, ready or [])
        loader_of_torch = DataLoader(samples, batch_sampler=order, collate_fn=samples.collate)
        found[name] = measured(loader_of_torch.__iter__, steps.num_steps)
    return found


def step_loader(config: Config, data: DataModule, steps: StepSampler) -> StepLoader[Any]:
    """The loader of a run on one rank, whose batches are whole steps."""
    ahead, size = config.performance.prefetch_batches, config.batch.global_size
    cpu = torch.device("cpu")
    return StepLoader(data.sets["train"], steps, Share(0, 1), size, cpu, ahead, lambda: (0, 0), StepClock())


def tensors_of(batch: Any) -> Tensors:
    """The tensors of a batch."""
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class Samples(Dataset[Tensors]):
    """A training set as torch's DataLoader takes one, a sample at a time.

    Args: ready: indices of samples that are read beforehand, so that only the collation is left; others are read from
        the set's storage when they are asked for.
    Raises: UserError: the batches are not made of one row for each sample.
    """

    def __init__(self, gathered: Any, task: str, ready: Iterable[Sequence[int]]) -> None:
        self.gathered, self.task = gathered, task
        self.texts = gathered if isinstance(gathered, TokenSet) else None
        self.ready: dict[int, Tensors] = {}
        self.ready = {index: self[index] for batch in ready for index in batch}

    def __len__(self) -> int:
        return len(self.gathered)

    def __getitem__(self, index: int) -> Tensors:
        if index in self.ready:
            return self.ready[index]
        batch = tensors_of(self.gathered.gather(np.array([index]), 1, 0))
        for name, tensor in batch.items():
            if tensor.dim() == 0 or len(tensor) != 1:
                raise UserError(f"task={self.task}: the field {name} of its batches has no row for each sample")
        sample = {name: tensor[0] for name, tensor in batch.items()}
        if self.texts is not None:
            sample["input_ids"] = sample["input_ids"][: int(sample["lengths"])]
        return sample

    def collate(self, samples: Sequence[Tensors]) -> Tensors:
        """Stack samples; texts are padded to the width that the task's own batches have."""
        texts = self.texts
        stacked = {
            name: torch.stack([sample[name] for sample in samples])
            for name in samples[0]
            if texts is None or name != "input_ids"
        }
        if texts is not None:
            ids = pad_sequence([sample["input_ids"] for sample in samples], True, texts.pad_id)
            missing = texts.batch_width(ids.shape[1]) - ids.shape[1]
            stacked["input_ids"] = torch.nn.functional.pad(ids, (0, missing), value=texts.pad_id)
        return stacked


def measured(
    batches: Callable[[], Iterable[Tensors]], num_batches: int, clock: Callable[[], float] = time.process_time
) -> Callable[[], Sample]:
    """A measurement of the time of a batch, over as many passes as a sample needs, with checksums of one pass.

    Args: batches: begins a pass. num_batches: of a pass. clock: gives seconds.
    """

    def spent_s(passes: int) -> float:
        start_s = clock()
        for _ in range(passes):
            for _ in batches():
                pass
        return clock() - start_s

    computed = checksums(batches())
    passes = max(1, round(SAMPLE_S / max(spent_s(1), 1e-6)))
    return lambda: Sample(spent_s(passes) / passes / num_batches, computed)


def checksums(batches: Iterable[Tensors]) -> dict[str, float]:
    """For each field a sum of all values of all batches, weighted by place: order, width and padding count."""
    sums: dict[str, float] = {}
    for number, batch in enumerate(batches, 1):
        for name, tensor in batch.items():
            weights = torch.linspace(1.0, 2.0, tensor.numel(), dtype=torch.float64) * number
            sums[name] = sums.get(name, 0.0) + float(tensor.flatten().double() @ weights)
    return sums

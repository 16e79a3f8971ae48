"""Loaders that Lightning iterates: no worker processes, since gathering a batch is one vectorised call.

torch's DataLoader collates sample by sample in worker processes and restarts an epoch on resume. Here a background
thread prepares batches ahead (NumPy and torch release the GIL in the copies), and an iteration starts at the step that
the caller's `position` returns.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch

from trainer.clock import StepClock
from trainer.data.batch import B, Gatherable, StepBatch
from trainer.data.samplers import Share, StepSampler, evaluation_batches, split_step

T = TypeVar("T")


class StepLoader(Generic[B]):
    """One rank's training batches, one per step.

    position: returns (epoch, steps of it already done); called at the start of each epoch, so that a resumed one
    continues at its next step. clock: counts the time that the training loop waits for a batch, and that of its copy.
    """

    def __init__(
        self,
        dataset: Gatherable[B],
        sampler: StepSampler,
        share: Share,
        micro_size: int,
        device: torch.device,
        prefetch_batches: int,
        position: Callable[[], tuple[int, int]],
        clock: StepClock,
    ) -> None:
        self.dataset, self.sampler, self.share, self.micro_size = dataset, sampler, share, micro_size
        self.device, self.prefetch_batches, self.position = device, prefetch_batches, position
        self.clock = clock

    def __len__(self) -> int:
        return self.sampler.num_steps

    def __iter__(self) -> Iterator[StepBatch[B]]:
        epoch, done = self.position()
        batches = prefetch(self._batches(epoch, done), self.prefetch_batches)
        while True:
            self.clock.enter("data_wait")
            batch = next(batches, None)
            if batch is None:
                self.clock.enter("other")
                return
            if self.device.type != "cpu":
                self.clock.enter("host_to_device")
                batch = batch.to(self.device)
            self.clock.enter("other")
            yield batch

    def _batches(self, epoch: int, done: int) -> Iterator[StepBatch[B]]:
        for indices in self.sampler.epoch_batches(epoch)[done:]:
            micros = split_step(indices, self.share, self.micro_size)
            step = StepBatch([self.dataset.gather(m.indices, m.num_valid, epoch) for m in micros], len(indices))
            yield step.pin_memory() if self.device.type == "cuda" else step


class EvaluationLoader(Generic[B]):
    """One rank's part of a set, or of its first num_samples, in order; each sample is on exactly one rank."""

    def __init__(
        self,
        dataset: Gatherable[B],
        share: Share,
        batch_size: int,
        device: torch.device,
        prefetch_batches: int,
        num_samples: int | None = None,
    ) -> None:
        self.dataset, self.device, self.prefetch_batches = dataset, device, prefetch_batches
        self.batches = evaluation_batches(len(dataset) if num_samples is None else num_samples, share, batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[B]:
        gathered = (self.dataset.gather(m.indices, m.num_valid, 0) for m in self.batches)
        pinned = (batch.pin_memory() for batch in gathered) if self.device.type == "cuda" else gathered
        for batch in prefetch(pinned, self.prefetch_batches):
            yield batch.to(self.device)


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """Run an iterator in a thread, `depth` items ahead. Its exception is raised in place of the item."""
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def put(entry: tuple[T | None, BaseException | None, bool]) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        """Put all items, and then the end or the exception."""
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)  # else GPU 0, where pinning memory would create a context
            for item in items:
                if stopped.is_set():
                    return
                put((item, None, False))
            put((None, None, True))
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            put((None, error, True))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error, last = ready.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # pyright: ignore[reportReturnType]
    finally:
        stopped.set()
        thread.join()

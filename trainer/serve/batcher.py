"""A bounded queue of inputs, and threads that compute them in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from trainer.serve.metrics import Metrics
from trainer.serve.model import ServedModel
from trainer.serve.problems import RequestProblem

# The work of a batch besides its tokens, in tokens: 10 for a MiniLM on one core, more for smaller networks and on GPUs.
FIXED_TOKENS = 32
# Attention is padded where layers are not. It costs a token for so many places of its score matrices, in a MiniLM on
# two cores; half as much in networks twice as wide.
SCORES_PER_TOKEN = 512


@dataclass(eq=False)
class Item:
    """One input on its way. model: that has prepared it and will compute it. length: see export's `length`.

    since: monotonic seconds at which it was queued. result: of postprocessing.
    """

    model: ServedModel
    prepared: Any
    length: int
    since: float = field(default_factory=time.monotonic)
    result: Future[dict[str, Any]] = field(default_factory=Future)


class Batcher:
    """Threads that take similar inputs from one queue. The oldest input is in the next batch, whatever its length."""

    def __init__(
        self, workers: int, max_batch: int, max_wait_s: float, max_queue: int, queue_s: float, metrics: Metrics
    ) -> None:
        self.max_batch, self.max_wait_s, self.max_queue, self.queue_s = max_batch, max_wait_s, max_queue, queue_s
        self.metrics = metrics
        self._waiting: list[Item] = []  # oldest first
        self._changed = threading.Condition()
        self._ended = False
        metrics.queue.set_function(lambda: len(self._waiting))
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"worker-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, items: Sequence[Item]) -> None:
        """Queue all items of a request, or none. Raises: RequestProblem: the queue is full."""
        with self._changed:
            if len(self._waiting) + len(items) > self.max_queue:
                raise RequestProblem(429, "the queue is full; try again later", {"Retry-After": "1"})
            self._waiting.extend(items)
            self._changed.notify()

    def close(self) -> None:
        """End the threads when the queue is empty."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, worker: int) -> None:
        while batch := self._take():
            # Nobody waits for an input whose request has timed out.
            batch = [item for item in batch if item.result.set_running_or_notify_cancel()]
            if not batch:
                continue
            self.metrics.batches.observe(len(batch))
            model = batch[0].model
            if model.computes_padding:
                self.metrics.padded.inc(len(batch) * max(item.length for item in batch) - sum(i.length for i in batch))
            try:
                results = model.compute(worker, [item.prepared for item in batch])
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises; the worker goes on
                for item in batch:
                    item.result.set_exception(error)
                continue
            for item, result in zip(batch, results, strict=True):
                item.result.set_result(result)

    def _take(self) -> list[Item]:
        """The next batch; empty at the end. Until max_batch inputs wait, the oldest waits for max_wait_s."""
        with self._changed:
            while True:
                self._expire()
                if self._waiting:
                    left_s = self._waiting[0].since + self.max_wait_s - time.monotonic()
                    if len(self._waiting) >= self.max_batch or left_s <= 0 or self._ended:
                        break
                    self._changed.wait(left_s)
                elif self._ended:
                    return []
                else:
                    self._changed.wait()
            chosen = choose(self._waiting, self.max_batch)
            taken = set(map(id, chosen))
            self._waiting = [item for item in self._waiting if id(item) not in taken]
            if self._waiting:
                self._changed.notify()
        return chosen

    def _expire(self) -> None:
        """Answer what has waited for too long, and drop what nobody waits for."""
        oldest = time.monotonic() - self.queue_s
        expired = [item for item in self._waiting if item.since < oldest or item.result.cancelled()]
        if expired:
            self._waiting = [item for item in self._waiting if item not in expired]
        for item in expired:
            if item.result.set_running_or_notify_cancel():
                item.result.set_exception(
                    RequestProblem(503, f"waited in the queue for more than {self.queue_s:g} s", {"Retry-After": "1"})
                )


def choose(waiting: Sequence[Item], most: int) -> list[Item]:
    """The oldest input, and those of the same model with which the least work per input is added to its own.

    Added is the fixed work of a batch, and its padding: of all layers, or of score matrices where the model computes no
    other padding. Inputs join in the order of their distance from the oldest's length, `most` at most. No choice is
    more work than its inputs one by one.
    """
    oldest = waiting[0]
    same = [item for item in waiting if item.model is oldest.model]
    nearest = sorted(same, key=lambda item: (item is not oldest, abs(item.length - oldest.length)))[:most]
    power, places_per_token = (1, 1) if oldest.model.computes_padding else (2, SCORES_PER_TOKEN)
    places = [item.length**power for item in nearest]
    added = [
        (FIXED_TOKENS + (count * widest - own) / places_per_token) / count
        for count, (widest, own) in enumerate(zip(accumulate(places, max), accumulate(places), strict=True), 1)
    ]
    return nearest[: added.index(min(added)) + 1]

"""How the state of a checkpoint comes to disk: at once, or in a thread beside training."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.checkpoint.retention import Retention
from trainer.checkpoint.shard_exchange import ShardExchange
from trainer.checkpoint.shards import Parts, own_parts, split_state
from trainer.checkpoint.store import CheckpointStore, Digest
from trainer.checkpoint.weights import read_state, write_state
from trainer.run.files import STATE_FILE
from trainer.run.metrics_file import flush_metrics
from trainer.run.record import Record

if TYPE_CHECKING:
    from torch.distributed.checkpoint.staging import DefaultStager


@dataclass(frozen=True)
class Save:
    """One checkpoint that is to be written.

    state: as Lightning dumps it. facts: for the manifest. best_steps: of the evaluations whose checkpoints are kept,
    the best one first.
    """

    step: int
    state: dict[str, Any]
    facts: Mapping[str, Any]
    best_steps: list[int]


class CheckpointWriter:
    """Writes checkpoints one after the other; on rank 0, and on all ranks where each writes its shards.

    Beside training, only the copy of the state into host memory holds the loop: a thread writes, flushes, verifies and
    hashes, and torch, hashlib and the kernel release the GIL in these. Between `begin` and `wait` at most one is in
    flight. What is killed before its rename leaves the checkpoint before it as the newest.

    shards: None where rank 0 writes full tensors.
    """

    def __init__(
        self, run_dir: Path, retention: Retention, beside_training: bool, shards: ShardExchange | None = None
    ) -> None:
        self.run_dir, self.retention, self.shards = run_dir, retention, shards
        self.store = CheckpointStore(run_dir)
        self.thread = ThreadPoolExecutor(1, "checkpoint") if beside_training else None
        self.stager: DefaultStager | None = None
        self.in_flight: Future[str | None] | None = None
        self.recorded = False

    def begin(self, save: Save) -> None:
        """Write a checkpoint, or begin to; the one before has been waited for."""
        assert self.in_flight is None
        parts: Parts = {}
        if self.shards is not None:
            rest, tensors = split_state(save.state)
            parts = own_parts(tensors, self.shards.rank, self.shards.world_size)
            save = replace(save, state=rest)
        if self.thread is None:
            done: Future[str | None] = Future()
            done.set_result(self._write(save, parts))
            # Not before: a future that will never be done would be waited for.
            self.in_flight = done
        else:
            state, parts = self._copy([save.state, parts])
            self.in_flight = self.thread.submit(self._write, replace(save, state=state), parts)

    def clear(self, step: int) -> str:
        """Remove what an interrupted write of a step has left. Returns: a token of the write that now begins."""
        shutil.rmtree(self.store.stage(step), ignore_errors=True)
        return secrets.token_hex(8)

    def failure(self) -> str | None:
        """Why the write in flight has failed, as far as is known by now; does not wait.

        Raises: Exception: what it has raised, unless the storage is the cause.
        """
        return self.in_flight.result() if self.in_flight is not None and self.in_flight.done() else None

    def wait(self) -> str | None:
        """Wait for the write in flight. Returns: why it has failed; None where it is on disk.

        Raises: Exception: what it has raised, unless the storage is the cause.
        """
        if self.in_flight is None:
            return None
        done, self.in_flight = self.in_flight, None
        return done.result()

    def _copy(self, state: Any) -> Any:
        """The state in host memory, which is kept for the next one; training goes on to change the original."""
        if self.stager is None:
            from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

            on_gpu = torch.cuda.is_available()
            # Not staged in yet another thread: the next step may begin as soon as this returns.
            options = StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
            self.stager = DefaultStager(options)
        return self.stager.stage(state)

    def _write(self, save: Save, parts: Parts) -> str | None:
        """Write this rank's part of a checkpoint. Returns: why the storage has failed."""
        staged = self.store.stage(save.step)
        try:
            staged.mkdir(parents=True, exist_ok=True)
            if self.shards is None:
                self._complete(save, {})
            elif self.shards.rank == 0:
                own = self.shards.write(parts, staged)
                self._complete(save, {**own, **self.shards.collect(staged)})
            else:
                self.shards.report(parts, staged)
        except OSError as error:
            # Its space is what other files of the run may need.
            if self.shards is None or self.shards.rank == 0:
                shutil.rmtree(staged, ignore_errors=True)
            return f"{error.filename or staged}: {error.strerror or error}"
        return None

    def _complete(self, save: Save, flushed: Mapping[str, Digest]) -> None:
        """Rank 0: write the state, make the checkpoint the newest one, and delete those that are no longer kept."""
        staged = self.store.stage(save.step)
        write_state(save.state, staged / STATE_FILE)
        if self.shards is None:
            # An unreadable file must not count, nor cost an older checkpoint its place.
            read_state(staged / STATE_FILE)
        flush_metrics(self.run_dir)
        self.store.commit(save.step, save.facts, flushed)
        if save.best_steps:
            self.store.link("best", self.store.path(save.best_steps[0]))
        if not self.recorded:
            # From here on a start at step 0 would lose progress, even if the checkpoints are gone.
            Record(self.run_dir).update(checkpointed=True)
            self.recorded = True
        self.store.prune(self.retention, save.best_steps)

"""How rank 0 learns what the other ranks have written of a checkpoint: from files beside it, without a collective.

A collective in a thread beside training would meet those of the steps.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.shards import SHARDS_DIR, Parts, write_shards
from trainer.checkpoint.store import Digest, digest
from trainer.run.files import fsync_path, write_json

POLL_S = 0.01


@dataclass
class ShardExchange:
    """Each rank writes and hashes its shards and reports them; rank 0 waits for the reports.

    timeout_s: that rank 0 waits. token: of this save, the same on all ranks, so that a report of an interrupted save
    does not count.
    """

    rank: int
    world_size: int
    timeout_s: float
    token: str = ""

    def write(self, parts: Parts, staged: Path) -> dict[str, Digest]:
        """Write and flush this rank's shards. Returns: their sha256 and sizes by path within the checkpoint.

        Raises: OSError: the storage refuses them.
        """
        files = write_shards(parts, staged / SHARDS_DIR, self.rank)
        digests = {str(file.relative_to(staged)): digest(file) for file in files}
        fsync_path(staged / SHARDS_DIR)
        return digests

    def report(self, parts: Parts, staged: Path) -> None:
        """Write this rank's shards and tell rank 0. Raises: OSError: the storage refuses them."""
        try:
            files = self.write(parts, staged)
            write_json(self._place(staged, self.rank, "json"), {"files": files})
        except OSError:
            for file in (staged / SHARDS_DIR).glob(f"rank-{self.rank:05d}-*"):
                file.unlink()
            # An empty file has no content that a full disk could refuse.
            self._place(staged, self.rank, "failed").touch()
            raise

    def collect(self, staged: Path) -> dict[str, Digest]:
        """Wait for the reports of the other ranks. Raises: OSError: one has failed, or has not come in time."""
        files: dict[str, Digest] = {}
        end_s = time.monotonic() + self.timeout_s
        for rank in range(1, self.world_size):
            report = self._place(staged, rank, "json")
            while not report.exists():
                if self._place(staged, rank, "failed").exists():
                    raise OSError(f"rank {rank} could not write its shards")
                if time.monotonic() > end_s:
                    raise OSError(f"rank {rank} has not written its shards within {self.timeout_s:g} s")
                time.sleep(POLL_S)
            files |= json.loads(report.read_text(encoding="utf-8"))["files"]
            report.unlink()
        return files

    def _place(self, staged: Path, rank: int, suffix: str) -> Path:
        return staged / f".rank-{rank:05d}-{self.token}.{suffix}"

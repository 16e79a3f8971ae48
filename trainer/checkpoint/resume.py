"""Which checkpoint the ranks load: rank 0 chooses, the others receive its answer."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.store import CheckpointStore, read_manifest
from trainer.collectives import broadcast_json
from trainer.run.metrics_file import drop_lines_after


def choose_checkpoint(run_dir: Path, rank: int) -> Path | None:
    """The newest valid checkpoint of a run, as rank 0 sees it; None where there is none. Called on all ranks.

    Rank 0 also removes the lines of metrics.jsonl that come after it.
    """
    choice = None
    if rank == 0:
        checkpoint = CheckpointStore(run_dir).newest_valid()
        drop_lines_after(run_dir, read_manifest(checkpoint)["step"] if checkpoint else 0)
        choice = str(checkpoint) if checkpoint else None
    choice = broadcast_json(choice)
    return Path(choice) if choice else None


def choose_final_checkpoint(run_dir: Path, rank: int) -> Path:
    """The best checkpoint of a run that has trained, else the newest, as rank 0 sees it. Called on all ranks."""
    choice = None
    if rank == 0:
        store = CheckpointStore(run_dir)
        choice = str(store.best() or store.checkpoints()[-1])
    return Path(broadcast_json(choice))

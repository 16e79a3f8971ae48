"""Which checkpoint the ranks load: rank 0 chooses, the others receive its answer."""

from __future__ import annotations

import sys
from pathlib import Path

from trainer.checkpoint.store import CheckpointStore, find_damage, read_manifest
from trainer.collectives import decide_on_rank_0
from trainer.errors import UserError
from trainer.run.metrics_file import cut_metrics
from trainer.run.record import Record


def choose_checkpoint(run_dir: Path) -> Path | None:
    """The newest valid checkpoint of a run; None where none was ever written. Called on all ranks.

    Rank 0 also cuts metrics.jsonl back to what it held when that checkpoint was saved.
    Raises: UserError: the run has had checkpoints, and none of them is valid.
    """
    choice = decide_on_rank_0(lambda: _newest(run_dir))
    return Path(choice) if choice else None


def choose_final_checkpoint(run_dir: Path, best_step: int | None) -> Path:
    """The best checkpoint of a run that has trained, else the newest valid one. Called on all ranks.

    Args: best_step: step of the best evaluation; None where nothing was evaluated.
    Raises: UserError: no checkpoint is valid.
    """
    return Path(decide_on_rank_0(lambda: _final(run_dir, best_step)))


def _newest(run_dir: Path) -> str | None:
    store = CheckpointStore(run_dir)
    checkpoint, damaged = store.newest_valid()
    if checkpoint is None:
        if damaged or Record(run_dir).read().get("checkpointed"):
            raise UserError(*_nothing_valid(run_dir, damaged))
        cut_metrics(run_dir, 0)
        return None
    for path, damage in damaged.items():
        print(f"{path} is damaged ({damage}); an older one is used", file=sys.stderr)
    manifest = read_manifest(checkpoint)
    cut_metrics(run_dir, manifest["metrics_bytes"])
    # A kill may have come between a commit and its links.
    store.link("last", checkpoint)
    if manifest["best_step"] is not None:
        store.link("best", store.path(manifest["best_step"]))
    return str(checkpoint)


def _nothing_valid(run_dir: Path, damaged: dict[Path, str]) -> list[str]:
    newest = next(iter(damaged), None)
    found = f"{newest.name}: {damaged[newest]}" if newest else "all of them are gone"
    return [
        f"{run_dir}: the run has been saved, but no checkpoint is valid ({found})",
        "restore a checkpoint, or start over in another directory with run.fresh=true",
    ]


def _final(run_dir: Path, best_step: int | None) -> str:
    store = CheckpointStore(run_dir)
    damage = None
    if best_step is not None:
        best = store.path(best_step)
        damage = find_damage(best) if best.exists() else "missing"
        if damage is None:
            return str(best)
    newest, damaged = store.newest_valid()
    if newest is None:
        raise UserError(*_nothing_valid(run_dir, damaged))
    if best_step is not None:
        print(
            f"the best checkpoint, {store.path(best_step).name}, is damaged ({damage}); "
            f"the final weights are those of {newest.name}, the newest valid one",
            file=sys.stderr,
        )
    return str(newest)

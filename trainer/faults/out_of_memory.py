"""batch.micro_size=auto: a step that does not fit into memory is done again in smaller micro-batches.

What has been found is kept in the run directory, so that a run that resumes does not search again. The search starts
at a rank's whole share, and the first step decides in most runs. A rank that is out of memory cannot tell its peers,
which wait for it in a collective: all ranks start again from the newest checkpoint, or from the first step.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.network_strategy import StepOutOfMemory
from trainer.run.files import FAULTS_DIR, write_json
from trainer.world import World

FOUND_FILE = "micro_size.json"


def with_found_micro_size(config: Config, run_dir: Path) -> Config:
    """The configuration with the micro-batch that was found so far, where batch.micro_size=auto has searched for it."""
    file = run_dir / FAULTS_DIR / FOUND_FILE
    if config.batch.micro_size != "auto" or not file.exists():
        return config
    found = json.loads(file.read_text(encoding="utf-8"))["micro_size"]
    return replace(config, batch=replace(config.batch, micro_size=found))


def shrink(asked: Config, tried: Config, world: World, run_dir: Path, error: StepOutOfMemory) -> str:
    """Note the next smaller micro-batch. Args: asked: the configuration. tried: with the micro-batch that did not fit.

    Returns: a line about it. Raises: UserError: the size is fixed, or one sample does not fit.
    """
    share = -(-asked.batch.global_size // world.world_size)
    micro = min(tried.batch.fixed_micro_size or share, share)
    # DeepSpeed takes micro-batches of equal size only.
    smaller = max((d for d in range(1, micro // 2 + 1) if share % d == 0), default=None)
    if asked.batch.micro_size != "auto":
        key = "null" if asked.batch.micro_size is None else asked.batch.micro_size
        advice = "use batch.micro_size=auto, or a smaller number"
        raise UserError(f"batch.micro_size={key}: rank {world.rank} is out of memory ({error})", advice)
    if smaller is None:
        raise UserError(f"batch.micro_size=auto: one sample does not fit on rank {world.rank} ({error})")
    folder = run_dir / FAULTS_DIR
    folder.mkdir(exist_ok=True)
    write_json(folder / FOUND_FILE, {"micro_size": smaller})
    return f"rank {world.rank} is out of memory with micro-batches of {micro}; again with {smaller}"

"""Where an attempt begins: at the run's own checkpoint, at the state or the weights that it names, or anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback

from trainer.checkpoint.continuation import Continuation, find_state, is_of_shorter_run
from trainer.checkpoint.initial import describe_weights, start_from_weights
from trainer.config.schema import Config
from trainer.data.module import DataModule
from trainer.module import TrainingModule
from trainer.run.files import STATE_FILE


@dataclass(frozen=True)
class Start:
    """state: file of the whole state that training goes on from; None at step 0. lines: for the terminal. callbacks:
    what the state needs. init: facts about a source outside of the run, for the record; None without one."""

    state: Path | None = None
    lines: list[str] = field(default_factory=list)
    callbacks: list[Callback] = field(default_factory=list)
    init: dict[str, Any] | None = None


def choose_start(
    config: Config, module: TrainingModule, data: DataModule, checkpoint: Path | None, device: torch.device
) -> Start:
    """Fill the networks where only weights are taken, else name the state to load. Called on all ranks.

    Args: checkpoint: the newest of the run itself, which goes before all others.
    Raises: UserError: what init.from or init.ckpt_path names cannot be used.
    """
    init = config.init
    if checkpoint is not None and is_of_shorter_run(config, checkpoint):
        lines = [f"continuing from {checkpoint.name}, where the shorter run has ended"]
        return Start(checkpoint / STATE_FILE, lines, [Continuation(own=True)])
    if checkpoint is not None:
        return Start(checkpoint / STATE_FILE, [f"resuming from {checkpoint.name}"])
    if init.ckpt_path is not None:
        state = find_state(config, module, data.fingerprint())
        facts = {"file": str(state), "sha256": init.sha256}
        return Start(state, [f"continuing from {state} in a new run"], [Continuation(own=False)], facts)
    if init.from_ is not None:
        facts = start_from_weights(config, module, device)
        return Start(lines=describe_weights(facts), init=facts)
    return Start()

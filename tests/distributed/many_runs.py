"""A rank that runs many command lines under torchrun, one after the other: `many_runs.py LINES.json`.

Starting an interpreter and importing DeepSpeed takes longer than the runs themselves. LINES.json is a list of
{"directory": ..., "words": [...]}; exit codes and measurements of each rank are written to LINES.json.RANK.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from trainer.cli import main

optimizer_bytes = 0
fit = pl.Trainer.fit


def measuring_fit(trainer: pl.Trainer, *arguments: Any, **options: Any) -> None:
    """pl.Trainer.fit, then the size of this rank's optimizer state."""
    global optimizer_bytes
    fit(trainer, *arguments, **options)
    entries = [value for o in trainer.strategy.optimizers for state in o.state.values() for value in state.values()]
    tensors = [entry.to_local() if isinstance(entry, DTensor) else entry for entry in entries]
    optimizer_bytes = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    # One group for all lines: DeepSpeed keeps the first one it sees.
    dist.init_process_group = lambda *arguments, **options: None
    dist.destroy_process_group = lambda group=None: None
    pl.Trainer.fit = measuring_fit  # pyright: ignore[reportAttributeAccessIssue]
    lines = Path(sys.argv[1])
    results = []
    for line in json.loads(lines.read_text()):
        os.chdir(line["directory"])
        code = main(line["words"])
        results.append({"code": code, "optimizer_bytes": optimizer_bytes})
        dist.barrier()
    Path(f"{lines}.{dist.get_rank()}").write_text(json.dumps(results))
    os._exit(0)

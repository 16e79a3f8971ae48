"""A rank under torchrun that saves once in each of several runs: `save_memory.py LINES.json`.

LINES.json is a list of {"directory": ..., "words": [...]}. What the first save of each run has taken of this rank's
memory beyond what it held before, in bytes, is written to LINES.json.RANK.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from trainer.checkpoint.callback import Checkpointing
from trainer.cli import main

save = Checkpointing.save
taken: list[int] = []


def memory_bytes(name: str) -> int:
    """A figure of this process: VmRSS is what it holds, VmHWM the most since the last reset."""
    (line,) = [line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


def measured_save(self: Checkpointing, *arguments: Any, **options: Any) -> None:
    # Memory that was freed and not given back would be used again, unseen.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_bytes("VmRSS")
    save(self, *arguments, **options)
    self._settle(arguments[0])
    taken.append(memory_bytes("VmHWM") - before)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    dist.init_process_group = lambda *arguments, **options: None
    dist.destroy_process_group = lambda group=None: None
    Checkpointing.save = measured_save
    lines = Path(sys.argv[1])
    results = []
    for line in json.loads(lines.read_text()):
        os.chdir(line["directory"])
        taken.clear()
        assert main(line["words"]) == 0
        results.append(taken[0])
        dist.barrier()
    Path(f"{lines}.{dist.get_rank()}").write_text(json.dumps(results))
    os._exit(0)

"""NCCL's flight recorder: the last collectives of a rank, written by a thread of torch when the watchdog asks for them.

That thread needs no GIL as long as it leaves out Python's stacks, which the watchdog has from elsewhere. It reads a
named pipe that torch creates where a variable names it (ProcessGroupNCCL's heartbeat monitor, once a second).
"""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

PREFIX = "nccl_trace_rank_"
PIPE_VARIABLE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
FILE_VARIABLE = "TORCH_FR_DUMP_TEMP_FILE"
NUM_ENTRIES = 2000
END_OF_PICKLE = b"."


def recorder_environment(folder: Path) -> dict[str, str]:
    """Variables that torch reads when it creates a process group of NCCL. Args: folder: for the pipe and the dump."""
    prefix = str(folder / PREFIX)
    return {
        "TORCH_FR_BUFFER_SIZE": str(NUM_ENTRIES),
        FILE_VARIABLE: prefix,
        # Their names before torch 2.11.
        "TORCH_NCCL_TRACE_BUFFER_SIZE": str(NUM_ENTRIES),
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": prefix,
        PIPE_VARIABLE: prefix,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        # They are taken with the GIL, which a rank that hangs may hold.
        "TORCH_INCLUDE_STACK_TRACE": "0",
    }


def dump(rank: int, target: Path, within_s: float) -> bool:
    """Let a rank write its last collectives, and move them to a folder. Returns: whether it has.

    Args: rank: that has this process's environment.
    """
    (target / f"{PREFIX}{rank}").unlink(missing_ok=True)
    if PIPE_VARIABLE not in os.environ or FILE_VARIABLE not in os.environ:
        return False
    written = Path(f"{os.environ[FILE_VARIABLE]}{rank}")
    written.unlink(missing_ok=True)
    try:
        pipe = os.open(f"{os.environ[PIPE_VARIABLE]}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # torch has not created it, or nobody reads it
        return False
    try:
        os.write(pipe, b"1\n")
    finally:
        os.close(pipe)
    deadline, before = time.monotonic() + within_s, b""
    while time.monotonic() < deadline:
        content = written.read_bytes() if written.exists() else b""
        if content and content == before and content.endswith(END_OF_PICKLE):
            (target / written.name).write_bytes(content)
            return True
        before = content
        time.sleep(0.05)
    return False


def page_lines(folder: Path, world_size: int) -> list[str]:
    """What a page says of the dumps in a folder."""
    ranks = [rank for rank in range(world_size) if (folder / f"{PREFIX}{rank}").exists()]
    if not ranks:
        return []
    partial = "" if len(ranks) == world_size else " --allow-incomplete-ranks"
    command = f"python -m torch.distributed.flight_recorder.fr_trace {shlex.quote(str(folder))} -p {PREFIX}{partial}"
    return [f"last collectives of rank {', '.join(map(str, ranks))}: {command}"]

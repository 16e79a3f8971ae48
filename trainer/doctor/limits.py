"""What the system allows a process: shared memory, open files. Torch-free."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from trainer.config import Config
from trainer.doctor.report import Finding
from trainer.launch import World

SHARED_MEMORY = Path("/dev/shm")
# NCCL's buffers between two GPUs of a node, and its advice for containers, whose default is 64 MiB (its documentation,
# troubleshooting, "sharing data"; nccl issue 342). Each rank of a ring has two neighbours.
SHARED_BYTES_OF_A_LINK, SHARED_BYTES_ADVISED = 9_637_888, 2**30
# Python, torch and memory-mapped caches keep a hundred or so; each peer of a rank takes several sockets.
FILES_OF_A_RANK, FILES_OF_A_PEER = 256, 8


def check_shared_memory(config: Config, world: World) -> Iterator[Finding]:
    """NCCL hands data from GPU to GPU of a node through it; data is prepared by threads, which need none."""
    if not SHARED_MEMORY.is_dir():
        remedy = "mount -t tmpfs tmpfs /dev/shm"
        yield Finding("shared memory", "warning", f"there is no {SHARED_MEMORY}", remedy)
        return
    space = os.statvfs(SHARED_MEMORY)
    free = space.f_bavail * space.f_frsize
    found = f"{SHARED_MEMORY}: {free / 2**20:.0f} MiB free"
    ranks = world.local_world_size
    if world.accelerator != "cuda" or ranks == 1 or free >= SHARED_BYTES_ADVISED:
        yield Finding("shared memory", "ok", found)
        return
    status = "failure" if free < 2 * ranks * SHARED_BYTES_OF_A_LINK else "warning"
    found += f", where NCCL advises {SHARED_BYTES_ADVISED / 2**20:.0f}"
    remedy = "start the container with --shm-size=1g, or `mount -o remount,size=1g /dev/shm`"
    yield Finding("shared memory", status, found, remedy)


def check_open_files(config: Config, world: World) -> Iterator[Finding]:
    """A rank may have as many files and sockets open as it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_A_RANK + FILES_OF_A_PEER * world.world_size
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= needed:
        yield Finding("open files", "ok", f"{'unlimited' if soft == unlimited else soft} a process")
        return
    how = f"ulimit -n {needed}" if hard == unlimited or hard >= needed else "raise nofile in /etc/security/limits.conf"
    found = f"{soft} a process, where {world.world_size} rank(s) may need {needed}"
    yield Finding("open files", "failure", found, how)

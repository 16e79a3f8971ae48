"""Limits that the system sets a process: shared memory, open files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from trainer.config.schema import Config
from trainer.errors import counted
from trainer.verbs.doctor.report import Finding
from trainer.world import World

SHARED_MEMORY = Path("/dev/shm")
# NCCL's buffers between two GPUs of a node, and its advice for containers, whose default is 64 MiB (its documentation,
# troubleshooting, "sharing data"; nccl issue 342). Each rank of a ring has two neighbours.
SHARED_BYTES_OF_A_LINK, SHARED_BYTES_ADVISED = 9_637_888, 2**30
# Measured on the CPU: up to 22 in each of two ranks, the elastic agent among them, and one more for each further rank.
FILES_OF_A_RANK, FILES_OF_A_PEER = 48, 4
# The usual default; drivers and NCCL keep more files open than the CPU's libraries.
FILES_FOR_GPUS = 1024


def check_shared_memory(config: Config, world: World) -> Iterator[Finding]:
    """NCCL exchanges data between the GPUs of a node through it. Data loading uses threads, which need none."""
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
    """The limit on open files allows for the files and sockets of a rank."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_A_RANK + FILES_OF_A_PEER * world.world_size
    advised = max(needed, FILES_FOR_GPUS) if world.accelerator == "cuda" else needed
    if soft == resource.RLIM_INFINITY or soft >= advised:
        yield Finding("open files", "ok", f"{'unlimited' if soft == resource.RLIM_INFINITY else soft} per process")
        return
    allowed = hard == resource.RLIM_INFINITY or hard >= advised
    remedy = f"ulimit -n {advised}" if allowed else "raise nofile in /etc/security/limits.conf"
    found = f"{soft} per process, and {counted(world.world_size, 'rank')} may need {advised}"
    yield Finding("open files", "failure" if soft < needed else "warning", found, remedy)

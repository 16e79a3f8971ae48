"""The watchdog of a rank: a process that notices when the rank makes no step, says where it is, and ends it.

It reads the rank's heartbeat (`heartbeat.py`) and imports neither torch nor anything that is large. A rank that holds
the GIL still writes its stacks, since faulthandler's signal handler needs no GIL; a rank that is stopped does so once
it continues. The report is written also where the rank ends before it is complete.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.faults.exit import end_with_parent, outlive_parent
from trainer.faults.flight_recorder import dump
from trainer.faults.hang_page import announce_hang, error_lines, hang_announced, ranks_folder, write_page
from trainer.run.files import FAULTS_DIR, write_json

# step, start of the step in progress, start of its state, longest recent step (ns); state, between steps, network
LAYOUT = struct.Struct("<QQQQBB32s")
# The first makes the main thread write its own stack, the second those of all threads.
STACK_SIGNAL, ALL_STACKS_SIGNAL = signal.SIGUSR2, signal.SIGURG
MAIN_STACK_END = "in <module>"
POLL_S = 0.5
STACKS_WITHIN_S = 1.0
PEERS_WITHIN_S = 3.0
PAGE_WITHIN_S = 15.0
DUMP_WITHIN_S = 3.0
# A pause of the watchdog itself, as of a suspended machine, says nothing about its rank.
PAUSE_S = 5.0
LONGEST_STEPS = 20


@dataclass(frozen=True)
class Limits:
    """How long a step may take, in seconds. seconds: fixed; None takes LONGEST_STEPS times the longest recent step,
    within floor_s and cap_s."""

    seconds: float | None
    floor_s: float
    cap_s: float

    def of(self, longest_s: float) -> float:
        """The limit. Args: longest_s: of the recent steps."""
        if self.seconds is not None:
            return self.seconds
        return min(self.cap_s, max(self.floor_s, LONGEST_STEPS * longest_s))


@dataclass(frozen=True)
class Watched:
    """A rank. memory, stacks: descriptors of its heartbeat and of the file for its stacks. states: names of the clock's
    states, by number. prints: the watchdog prints the page's first lines, as nobody else does."""

    pid: int
    main_thread: int
    rank: int
    world_size: int
    prints: bool
    run_dir: str
    states: list[str]
    memory: int
    stacks: int
    limits: Limits


@dataclass(frozen=True)
class Beat:
    """A heartbeat; times in seconds of the monotonic clock, which all processes of a host share."""

    step: int
    base_s: float
    since_s: float
    longest_s: float
    state: int
    between_steps: bool
    network: str

    @classmethod
    def read(cls, page: mmap.mmap) -> Beat:
        """The newest."""
        step, base, since, longest, state, between, network = LAYOUT.unpack_from(page, 0)
        return cls(step, base / 1e9, since / 1e9, longest / 1e9, state, bool(between), network.rstrip(b"\0").decode())


def watch(watched: Watched) -> None:
    """Return when the rank has ended, or has been ended because it made no step."""
    page = mmap.mmap(watched.memory, mmap.PAGESIZE, prot=mmap.PROT_READ)
    run_dir = Path(watched.run_dir)
    before = hang_announced(run_dir)
    overdue, resumed_s = 0, 0.0
    polled_s = time.monotonic()
    while os.getppid() == watched.pid:
        time.sleep(POLL_S)
        now = time.monotonic()
        if now - polled_s > PAUSE_S:
            resumed_s = now
        polled_s = now
        beat = Beat.read(page)
        late = not beat.between_steps and now - max(beat.base_s, resumed_s) > watched.limits.of(beat.longest_s)
        # Twice, as the rank may have been writing while it was read.
        overdue = overdue + 1 if late else 0
        announced = hang_announced(run_dir) != before
        if overdue == 2 or announced:
            outlive_parent()
            if not announced:
                announce_hang(run_dir)
                # All watchdogs look at their ranks before any is asked for its stacks, which may wake it and its peers.
                time.sleep(2.5 * POLL_S)
            _report(watched, beat)
            if os.getppid() == watched.pid:
                os.kill(watched.pid, signal.SIGKILL)
            return


def _report(watched: Watched, beat: Beat) -> None:
    """Write down where this rank is; rank 0's watchdog also writes the page, and the others wait for it."""
    faults = Path(watched.run_dir) / FAULTS_DIR
    ranks = ranks_folder(Path(watched.run_dir))
    began = time.time() - 2 * PEERS_WITHIN_S
    write_json(ranks / f"rank-{watched.rank}.json", _facts(watched, beat))
    dump(watched.rank, ranks, DUMP_WITHIN_S)
    done = ranks / "page.json"
    if watched.rank != 0:
        _wait_for(lambda: _is_newer(done, began), PAGE_WITHIN_S)
        return
    files = [ranks / f"rank-{rank}.json" for rank in range(watched.world_size)]
    _wait_for(lambda: all(_is_newer(file, began) for file in files), PEERS_WITHIN_S)
    found = {n: json.loads(file.read_text()) for n, file in enumerate(files) if _is_newer(file, began)}
    page = write_page(faults, found, watched.world_size)
    write_json(done, {"page": page.name})
    if watched.prints:
        print("\n".join(error_lines(page)), file=sys.stderr, flush=True)


def _facts(watched: Watched, beat: Beat) -> dict[str, Any]:
    now = time.monotonic()
    process_state = _process_state(watched.pid)
    return {
        "rank": watched.rank,
        "host": socket.gethostname(),
        "pid": watched.pid,
        "step": beat.step + 1,
        "no_step_s": now - beat.base_s,
        "state": watched.states[beat.state],
        "state_s": now - beat.since_s,
        "network": beat.network,
        "stopped": process_state == "T",
        "main_thread": f"0x{watched.main_thread:016x}",
        "stacks": _stacks(watched, process_state),
    }


def _stacks(watched: Watched, process_state: str) -> str:
    """What faulthandler writes: of the main thread, and then of all. A rank that is stopped continues for it.

    The main thread's own comes first, since it is where the rank was stopped, and since reading the stacks of threads
    that run may end the rank by a segmentation fault.
    """
    with suppress(ProcessLookupError):
        _kill_main_thread(watched.pid, STACK_SIGNAL)
        if process_state == "T":
            os.kill(watched.pid, signal.SIGCONT)
    own = _written(watched.stacks, 0)
    with suppress(ProcessLookupError):
        os.kill(watched.pid, ALL_STACKS_SIGNAL)
    return f"Thread 0x{watched.main_thread:016x}: {own}\n{_written(watched.stacks, len(own))}"


def _kill_main_thread(pid: int, number: int) -> None:
    """Send a signal to the main thread of a process; any thread may take one that is sent to the process.

    Raises: ProcessLookupError: the process has ended.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "tgkill"):  # glibc before 2.30
        os.kill(pid, number)
    elif libc.tgkill(pid, pid, number):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _written(descriptor: int, start: int) -> str:
    """What a rank writes after a signal, from a position on, up to the end of its main thread's stack."""
    path, text = Path(f"/proc/self/fd/{descriptor}"), ""
    deadline = time.monotonic() + STACKS_WITHIN_S
    while time.monotonic() < deadline:
        time.sleep(0.05)
        before, text = text, path.read_text(errors="replace")[start:]
        # The end is not the last line where a program runs as a module.
        if MAIN_STACK_END in text and text == before:
            break
    return text


def _process_state(pid: int) -> str:
    """The kernel's letter: R runs, S sleeps, T is stopped, Z has ended; empty where nothing is left of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_newer(path: Path, time_s: float) -> bool:
    return path.exists() and path.stat().st_mtime >= time_s


def _wait_for(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def main() -> None:
    """Entry point of the process; the argument is a Watched as JSON."""
    end_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    values = json.loads(sys.argv[1])
    # The rank may end at any moment, such as by the agent that ends all ranks after the first.
    with suppress(ProcessLookupError, FileNotFoundError):
        watch(Watched(**{**values, "limits": Limits(**values["limits"])}))


if __name__ == "__main__":
    main()

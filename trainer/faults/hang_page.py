"""The page about ranks that make no step: who is where, since when, and who waits for whom."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.faults.flight_recorder import page_lines
from trainer.run.files import FAULTS_DIR, write_text

RANKS_FOLDER, ANNOUNCED = "hang", "announced"
REPORT_WITHIN_S = 25.0  # from the announcement until the page is there and the watchdogs have ended their ranks
NUM_ERROR_LINES = 3
FRAME = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
# Where a thread waits for another rank.
COLLECTIVES = "torch/distributed/distributed_c10d.py"
LIBRARIES = re.compile(r"/site-packages/|/lib/python3|^<")
PREFETCH = ("trainer/data/loaders.py", "work")


@dataclass(frozen=True)
class Frame:
    """A line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        file = Path(self.file)
        here = Path.cwd()
        return f"{file.relative_to(here) if file.is_relative_to(here) else file}:{self.line} ({self.function})"


def write_page(faults: Path, found: Mapping[int, Mapping[str, Any]], world_size: int) -> Path:
    """Write the page. Args: faults: folder. found: facts of the ranks that have reported. Returns: its path."""
    places = {rank: _where(facts) for rank, facts in found.items()}
    step = min(facts["step"] for facts in found.values())
    culprits = [rank for rank, facts in found.items() if not _waits(facts)]
    culprits.sort(key=lambda rank: -found[rank]["no_step_s"])
    missing = [rank for rank in range(world_size) if rank not in found]
    longest = max(facts["no_step_s"] for facts in found.values())
    page = faults / f"hang-step-{step:08d}.txt"
    lines = [
        f"no step for {longest:.0f} s: {_first_line(found, places, culprits, missing)}",
        _second_line(found, places, culprits),
        f"stacks of all ranks: {page}",
        "",
        *(f"rank {rank}: {places[rank]}, {_phase(facts)}, on {facts['host']}, process {facts['pid']}"
          for rank, facts in found.items()),
        *(f"rank {rank}: no report" for rank in missing),
        *page_lines(faults / RANKS_FOLDER, world_size),
    ]  # fmt: skip
    for rank, facts in found.items():
        lines += ["", f"---- rank {rank}", facts["stacks"].rstrip()]
    write_text(page, "\n".join(lines) + "\n")
    return page


def error_lines(page: Path) -> list[str]:
    """The first lines of a page, for the terminal."""
    return page.read_text(encoding="utf-8").split("\n")[:NUM_ERROR_LINES]


def ranks_folder(run_dir: Path) -> Path:
    """Where the watchdogs of a run write what they know of their ranks."""
    return run_dir / FAULTS_DIR / RANKS_FOLDER


def announce_hang(run_dir: Path) -> None:
    """Tell all watchdogs of a run that one of them is about to report."""
    ranks_folder(run_dir).mkdir(parents=True, exist_ok=True)
    (ranks_folder(run_dir) / ANNOUNCED).touch()


def hang_announced(run_dir: Path) -> float:
    """When a hang was last announced, in seconds since the epoch; 0 where none was."""
    try:
        return (ranks_folder(run_dir) / ANNOUNCED).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def newest_page(run_dir: Path, since_s: float) -> Path | None:
    """The page about the newest hang; where one has just been announced, waits until its page is there.

    Args: since_s: hangs that are older, in seconds since the epoch, do not count.
    """
    announced_s = hang_announced(run_dir)
    if announced_s < since_s:
        return None
    while (page := _newest(run_dir, announced_s)) is None and time.time() < announced_s + REPORT_WITHIN_S:
        time.sleep(0.05)
    return page


def _newest(run_dir: Path, since_s: float) -> Path | None:
    pages = [page for page in (run_dir / FAULTS_DIR).glob("hang-step-*.txt") if page.stat().st_mtime >= since_s]
    return max(pages, key=lambda page: page.stat().st_mtime, default=None)


def frames_of(stack: str) -> list[Frame]:
    """The lines of one thread's stack, the innermost first."""
    return [Frame(found["file"], int(found["line"]), found["function"]) for found in FRAME.finditer(stack)]


def _first_line(
    found: Mapping[int, Mapping[str, Any]], places: Mapping[int, str], culprits: list[int], missing: list[int]
) -> str:
    if missing:
        return f"rank {_listed(missing)} does not report; its machine may be gone"
    if culprits:
        rank = culprits[0]
        facts = found[rank]
        stopped = "; a signal has stopped the process" if facts["stopped"] else ""
        return f"rank {rank} is at {places[rank]}, {_phase(facts)}{stopped}"
    if len(set(places.values())) > 1:
        return "the ranks wait for each other in different places, so one has left out a collective"
    return f"all ranks wait in {_collective(next(iter(found.values())))}, so it is the network"


def _second_line(found: Mapping[int, Mapping[str, Any]], places: Mapping[int, str], culprits: list[int]) -> str:
    waiting = [rank for rank in found if rank not in culprits]
    if culprits and waiting:
        return f"rank {_listed(waiting)} waits for it in {_collective(found[waiting[0]])} at {places[waiting[0]]}"
    return "; ".join(f"rank {rank} at {place}" for rank, place in list(places.items())[:4])


def _phase(facts: Mapping[str, Any]) -> str:
    network = f" of {facts['network']}" if facts["network"] else ""
    return f"in step {facts['step']}, {facts['state']}{network} for {facts['state_s']:.0f} s"


def _waits(facts: Mapping[str, Any]) -> bool:
    """Whether a rank waits for others."""
    if facts["stopped"]:
        return False
    inner = _main_frames(facts)[:6]
    return any(COLLECTIVES in frame.file for frame in inner) or facts["state"] == "communication"


def _collective(facts: Mapping[str, Any]) -> str:
    for frame in _main_frames(facts):
        if COLLECTIVES in frame.file:
            return frame.function
    return f"the reduction of the gradients of {facts['network']}" if facts["network"] else "a collective"


def _where(facts: Mapping[str, Any]) -> str:
    """The innermost line outside of libraries; of a rank without a batch, that of the thread that prepares it."""
    frames = _main_frames(facts)
    if facts["state"] == "data_wait":
        for stack in _threads(facts):
            thread = frames_of(stack)
            if any(frame.file.endswith(PREFETCH[0]) and frame.function == PREFETCH[1] for frame in thread):
                return f"{_innermost(thread)} in the thread that prepares batches"
        return f"{_innermost(frames)}; no thread prepares batches"
    return str(_innermost(frames))


def _innermost(frames: list[Frame]) -> Frame:
    own = [frame for frame in frames if not LIBRARIES.search(frame.file)]
    return (own or frames or [Frame("an unknown line", 0, "no stack was written")])[0]


def _main_frames(facts: Mapping[str, Any]) -> list[Frame]:
    stack = next((text for text in _threads(facts) if facts["main_thread"] in text.split("\n")[0]), "")
    return frames_of(stack)


def _threads(facts: Mapping[str, Any]) -> list[str]:
    return re.split(r"\n(?=(?:Current t|T)hread 0x)", "\n" + facts["stacks"])


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))

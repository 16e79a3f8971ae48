"""profiler=nsys: the command again, under Nsight Systems."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from trainer.config.profilers import NSYS_SESSION_VARIABLE, NsysProfilerConfig
from trainer.config.schema import Config
from trainer.faults.signals import handle_stop_signals
from trainer.run.files import PROFILE_DIR

# Names the directory where nsys writes, and where the ranks write which run it is of.
FOLDER_VARIABLE = "TRAINER_NSYS_FOLDER"
RUN_FILE = "run"
# Without sampling of the CPU, which needs privileges that containers lack. nsys would end the run with the recording.
OPTIONS = (
    "--trace=cuda,nvtx,osrt", "--sample=none", "--cpuctxsw=none",
    "--capture-range=cudaProfilerApi", "--capture-range-end=stop",
)  # fmt: skip


def needs_nsys(config: Config) -> bool:
    """Whether the command has to start itself under nsys, which it has not done yet."""
    under_nsys = NSYS_SESSION_VARIABLE in os.environ or FOLDER_VARIABLE in os.environ
    return isinstance(config.profiler, NsysProfilerConfig) and not under_nsys


def run_under_nsys(words: Sequence[str], num_nodes: int) -> int:
    """Run `python -m trainer WORDS` under nsys, and move what it has written to profile/ of the run.

    SIGTERM and SIGUSR1 are forwarded as SIGTERM, which nsys forwards to the command; Ctrl-C reaches all of them.

    Returns: the exit code of the command.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "nsys.nsys-rep"
        command = ["nsys", "profile", *OPTIONS, f"--output={report.with_suffix('')}", sys.executable, "-m", "trainer"]
        process = subprocess.Popen([*command, *words], env={**os.environ, FOLDER_VARIABLE: folder})

        def forward(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGINT:
                process.send_signal(signal.SIGTERM)

        before = handle_stop_signals(forward)
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        _keep(report, num_nodes)
    return code


def note_run(run_dir: Path) -> None:
    """Tell the process that has started nsys which run it is; called on each rank."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        (Path(folder) / RUN_FILE).write_text(str(run_dir), encoding="utf-8")


def _keep(report: Path, num_nodes: int) -> None:
    noted = report.with_name(RUN_FILE)
    if not noted.exists():
        return  # the command has ended before it had a run, and has said why
    run_dir = Path(noted.read_text(encoding="utf-8"))
    if not report.exists() or not run_dir.exists():
        print("no profile: nsys has written none, or nothing of the run is kept", file=sys.stderr)
        return
    # The nodes may share the run directory.
    name = report.name if num_nodes == 1 else f"nsys-{socket.gethostname()}{report.suffix}"
    (run_dir / PROFILE_DIR).mkdir(exist_ok=True)
    print(f"  profile  {shutil.move(report, run_dir / PROFILE_DIR / name)}")

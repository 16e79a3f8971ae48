"""python -m trainer."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

OLDEST_PYTHON = (3, 11)
# Imported by every command; another interpreter has none of them, or only some.
NEEDED = ("hydra", "omegaconf", "pydantic", "rich")


def script() -> NoReturn:
    """The console script."""
    from trainer.search_path import search_working_directory_last

    search_working_directory_last()
    from trainer.faults.exit import run_and_exit

    # libgomp's waiting threads spin by default, which takes the cores from whatever else runs on them: a run took twice
    # as long beside another process (benchmarks/openmp_wait.py). Ranks inherit it; it has to be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def main() -> int:
        """Import and run the command within run_and_exit, so that Ctrl-C during imports prints no traceback."""
        problem = wrong_interpreter()
        if problem is not None:
            print(problem, file=sys.stderr)
            return 2
        from trainer.cli import main

        return main()

    run_and_exit(main)


def wrong_interpreter() -> str | None:
    """What to do if this interpreter is not the one that the project is installed for, in one line."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if sys.version_info >= OLDEST_PYTHON and not missing:
        return None
    version = ".".join(map(str, sys.version_info[:2]))
    what = f"it has no package {missing[0]}" if missing else f"it is Python {version}, and 3.11 is the oldest possible"
    own = Path(__file__).resolve().parent.parent / ".venv" / "bin"
    remedy = f"activate the environment (source {own}/activate)" if own.exists() else "install the project (make train)"
    return f"{sys.executable} cannot run trainer: {what}; {remedy}"


if __name__ == "__main__":
    script()

"""python -m trainer."""

from typing import NoReturn

from trainer.cli import main
from trainer.faults.exit import run_and_exit


def script() -> NoReturn:
    """The console script."""
    run_and_exit(main)


if __name__ == "__main__":
    script()

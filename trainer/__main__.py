"""python -m trainer."""

from typing import NoReturn

from trainer.cli import main
from trainer.faults.leave import run_and_leave


def script() -> NoReturn:
    """The console script."""
    run_and_leave(main)


if __name__ == "__main__":
    script()

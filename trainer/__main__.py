"""python -m trainer."""

from typing import NoReturn

from trainer.faults.exit import run_and_exit


def script() -> NoReturn:
    """The console script."""

    def main() -> int:
        # Within run_and_exit, so that Ctrl-C during imports prints no traceback.
        from trainer.cli import main

        return main()

    run_and_exit(main)


if __name__ == "__main__":
    script()

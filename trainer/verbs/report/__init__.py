"""The verb report: one page about runs, as a file or from a server that keeps it up to date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import EXIT_DONE, UserError, nearest
from trainer.report.page import write_report
from trainer.run.files import REPORT_FILE

COMPARISON_FILE = "comparison.html"
ARGUMENTS = ("run", "out", "serve", "root", "port")
OF_SERVE, OF_A_FILE = ("root", "port"), ("run", "out")


@dataclass(frozen=True)
class Arguments:
    """runs: directories. out: the file. serve: a live page of all runs below root; port 0 takes a free one."""

    runs: tuple[Path, ...]
    out: Path | None
    serve: bool
    root: Path
    port: int


def report(words: Sequence[str]) -> int:
    """`run=DIR [run=DIR ...] [out=FILE]`, or `--serve [root=DIR] [port=N]`.

    Returns: exit code. Raises: UserError: a wrong argument, or a run that is missing, damaged or empty.
    """
    arguments = parse(words)
    if arguments.serve:
        from trainer.verbs.report.live import serve

        return serve(arguments.root, arguments.port)
    default = arguments.runs[0] / REPORT_FILE if len(arguments.runs) == 1 else Path(COMPARISON_FILE)
    out = arguments.out or default
    write_report(arguments.runs, out)
    print(out)
    return EXIT_DONE


def parse(words: Sequence[str]) -> Arguments:
    """The words of the command line. Raises: UserError: an unknown, contradictory or missing argument."""
    pairs = [_pair(word) for word in words]
    runs = [Path(value) for key, value in pairs if key == "run"]
    values: dict[str, str] = {}
    for key, value in pairs:
        if key in values:
            raise UserError(f"{key}={value}: given twice")
        if key != "run":
            values[key] = value
    serve = _boolean("serve", values.get("serve", "false"))
    useless = [key for key, _ in pairs if key in (OF_A_FILE if serve else OF_SERVE)]
    if useless:
        other = "without --serve" if serve else "with --serve"
        raise UserError(f"report: {useless[0]} has an effect only {other}")
    if not serve and not runs:
        raise UserError("report: needs run=DIR (several to compare them), or --serve for a live page of all runs")
    resolved = [path.resolve() for path in runs]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise UserError(f"run={runs[number]}: given twice")
    out = Path(values["out"]) if "out" in values else None
    if out is not None and (out.is_dir() or not values["out"]):
        raise UserError(f"out={values['out']}: is a directory; a file is needed")
    return Arguments(tuple(runs), out, serve, Path(values.get("root", "outputs")), _port(values.get("port", "0")))


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = ("serve", "=", "true") if word == "--serve" else word.partition("=")
    if not equals or key not in ARGUMENTS:
        raise UserError(f"{word}: report takes key=value and --serve; {nearest(key, ARGUMENTS)}")
    return key, value


def _boolean(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise UserError(f"{key}={text}: true or false is needed")
    return text == "true"


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**16):
        raise UserError(f"port={text}: a number from 0 to 65535 is needed; 0 takes a free port")
    return int(text)

"""python -m trainer [verb] overrides...: verb -> function, errors -> exit codes. Torch-free until a verb needs it."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from trainer.errors import EXIT_DONE, EXIT_USER, UserError, nearest

LET_RANK_0_SPEAK_S = 3.0

USAGE = """\
python -m trainer [verb] [key=value ...]

  python -m trainer task=cnn                     train; the same line resumes an unfinished run
  python -m trainer task=cnn trainer.devices=2   the same curve on two ranks
  python -m trainer experiment=NAME              a full recipe from conf/experiment/
  python -m trainer -m task=cnn optimizer.lr=0.1,0.3   a sweep
  python -m trainer plan task=cnn                what would run, on what
  python -m trainer doctor task=cnn              what would end the run on this machine, and the remedy
  python -m trainer eval run=DIR                 metrics of a run's best weights
  python -m trainer predict run=DIR ...          apply a run to new input
  python -m trainer convert run=DIR checkpoint=last    weights of a checkpoint as safetensors

Options of fit, plan and doctor:
  --cfg job            print the composed configuration and exit
  --config-dir DIR     add a folder of your own groups, such as DIR/experiment/mine.yaml
  -m, --multirun       a job for each combination of comma-separated values
  --json               doctor's findings as JSON
  -h, --help           this text and the members of every group
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns: exit code; 0 done, 2 the user's to mend, 75 stopped and resumable, 1 our bug."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(words)
    except UserError as error:
        if speaks():
            print("\n".join(error.lines), file=sys.stderr)
        else:
            # The launcher ends all ranks when the first one has gone, which must not be before rank 0 has spoken.
            time.sleep(LET_RANK_0_SPEAK_S)
        return EXIT_USER


def run(words: list[str]) -> int:
    """Dispatch the verb, which is the first word when it has no "=". Raises: UserError."""
    if "-h" in words or "--help" in words:
        print(help_text())
        return EXIT_DONE
    if "--version" in words:
        from trainer import __version__

        print(__version__)
        return EXIT_DONE
    verb = words.pop(0) if words and "=" not in words[0] and not words[0].startswith("-") else "fit"
    if verb not in VERBS:
        raise UserError(f"{verb}: no such verb; {nearest(verb, list(VERBS))}")
    return VERBS[verb](words)


def speaks() -> bool:
    """Whether this process tells the user: of several ranks started from the command line, one does."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def help_text() -> str:
    """Usage, and the members of every configuration group."""
    from trainer.task import HOME

    lines = [USAGE, "Groups:"]
    for group in sorted((HOME / "conf").iterdir()):
        if group.is_dir():
            members = " ".join(sorted(file.stem for file in group.glob("*.yaml")))
            lines.append(f"  {group.name}={members}" if members else f"  {group.name}")
    return "\n".join(lines)


def _verb(module: str, function: str) -> Callable[[list[str]], int]:
    """A verb by the name of its module, imported when it is called: `--help` and mistakes must not wait for others."""

    def call(words: list[str]) -> int:
        return getattr(importlib.import_module(f"trainer.verbs.{module}"), function)(words)

    return call


VERBS: Mapping[str, Callable[[list[str]], int]] = {
    "fit": _verb("fit", "fit"),
    "plan": _verb("plan", "plan"),
    "doctor": _verb("doctor", "doctor"),
    "eval": _verb("evaluate", "evaluate"),
    "predict": _verb("predict", "predict"),
    "convert": _verb("convert", "convert"),
    "report": _verb("report", "report"),
}

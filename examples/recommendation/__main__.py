"""python -m examples.recommendation VERB KEY=VALUE ..."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from examples.recommendation.options import EvaluateOptions, ServeOptions, TrainOptions, parse
from trainer import UserError

USAGE = """usage: python -m examples.recommendation VERB [KEY=VALUE ...]

  train     path=FOLDER model=tiny|minilm
  evaluate  k=10 result=FOLDER
  serve     host=127.0.0.1 port=8802

Every verb takes out=FOLDER (outputs/recommendation); train also takes keys of the trainer that have a dot, such as
trainer.max_steps=50. README.md says more."""
EXIT_DONE, EXIT_USER, EXIT_STOPPED = 0, 2, 75


def main(words: Sequence[str]) -> int:
    """Run a verb. Returns: exit code: 0 done, 2 user error, 75 stopped on request."""
    try:
        return _run(words)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER


def _run(words: Sequence[str]) -> int:
    verb, rest = (words[0], words[1:]) if words else ("", [])
    if verb == "train":
        from examples.recommendation.train import Stopped, train

        try:
            train(*parse(rest, TrainOptions))
        except Stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            return EXIT_STOPPED
    elif verb == "evaluate":
        from examples.recommendation.evaluate import evaluate

        options, _ = parse(rest, EvaluateOptions)
        print(evaluate(options, ["python -m examples.recommendation", *words]).table())
    elif verb == "serve":
        from examples.recommendation.service import serve

        options, _ = parse(rest, ServeOptions)
        serve(options)
    elif verb in ("", "help", "-h", "--help"):
        print(USAGE)
    else:
        raise UserError(f"{verb}: no such verb; possible: train, evaluate, serve")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

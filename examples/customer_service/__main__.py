"""python -m examples.customer_service VERB KEY=VALUE ..."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from examples.customer_service.options import EvaluateOptions, RetrainOptions, ServeOptions, TrainOptions, parse
from trainer import UserError

USAGE = """usage: python -m examples.customer_service VERB [KEY=VALUE ...]

  train     data=generated|FILE|DIR model=tiny|minilm answers=FILE precision=0.97 matcher=false matcher_pairs=8000
  evaluate  out_of_scope=FILE|DIR
  serve     host=127.0.0.1 port=8800 slots=FILE
  retrain   train anew, with what was added to the answer base and corrected in the log

Every verb takes out=FOLDER (outputs/customer_service); train and retrain also take keys of the trainer that have a dot,
such as trainer.max_epochs=2. README.md says more."""
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
    if verb in ("train", "retrain"):
        from examples.customer_service.train import Stopped, retrain, train

        try:
            train(*parse(rest, TrainOptions)) if verb == "train" else retrain(*parse(rest, RetrainOptions))
        except Stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            return EXIT_STOPPED
    elif verb == "evaluate":
        from examples.customer_service.evaluate import evaluate

        options, _ = parse(rest, EvaluateOptions)
        print(evaluate(options).table())
    elif verb == "serve":
        from examples.customer_service.service import serve

        options, _ = parse(rest, ServeOptions)
        serve(options)
    elif verb in ("", "help", "-h", "--help"):
        print(USAGE)
    else:
        raise UserError(f"{verb}: no such verb; possible: train, evaluate, serve, retrain")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Entry point of a rank that torch's elastic agent has started.

`python -m trainer.rank VERB RUN_DIR [key=value ...]` where the parent process has opened the run, or
`python -m trainer.rank join WORDS...` where the ranks of several nodes open it together.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.errors import EXIT_BUG, EXIT_DONE, EXIT_USER, UserError
from trainer.faults.exit import end_with_parent, run_and_exit
from trainer.faults.signals import stop_before_training
from trainer.launch.error_file import record_error
from trainer.launch.process_group import process_group
from trainer.launch.rank_logs import set_up_rank_logs
from trainer.verbs.prepare import PreparedRun, prepare, take_options
from trainer.verbs.stored_run import own_arguments, prepare_stored


def main() -> int:
    """Run the verb on this rank. Returns: exit code; errors are passed to the parent, which prints the first one."""
    end_with_parent(signal.SIGKILL)
    stop_before_training()
    verb, *arguments = sys.argv[1:]
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().initialize()
    try:
        if verb == "join":
            from trainer.verbs.fit import fit_joined

            options, overrides = take_options(arguments)
            return fit_joined(prepare(overrides, options))
        return _on_rank(verb, Path(arguments[0]), arguments[1:])
    except UserError as error:
        # The parent prints it once for all ranks.
        record_error(error)
        return EXIT_USER
    except Exception as error:
        # To the log, not to the terminal: the parent prints the first failure of all ranks.
        logging.getLogger("trainer").exception("this rank failed")
        record_error(error)
        return EXIT_BUG


def _on_rank(verb: str, run_dir: Path, arguments: Sequence[str]) -> int:
    prepared = prepare_stored(verb, run_dir, arguments)
    prepared = replace(prepared, world=replace(prepared.world, launcher="elastic"))
    set_up_rank_logs(run_dir, prepared.world)
    with process_group(prepared.config, prepared.world):
        return RANK_VERBS[verb](prepared, run_dir, own_arguments(verb, arguments))


def _fit(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> int:
    from trainer.verbs.fit import fit_on_rank

    return fit_on_rank(prepared, run_dir)


def _evaluate(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> int:
    from trainer.verbs.evaluate import evaluate_on_rank

    evaluate_on_rank(prepared, run_dir, arguments)
    return EXIT_DONE


def _predict(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> int:
    from trainer.verbs.predict import predict_on_rank

    predict_on_rank(prepared, run_dir, arguments)
    return EXIT_DONE


def _bench(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> int:
    from trainer.verbs.bench.on_rank import bench_on_rank

    bench_on_rank(prepared, run_dir, arguments)
    return EXIT_DONE


RANK_VERBS: Mapping[str, Callable[[PreparedRun, Path, Sequence[str]], int]] = {
    "fit": _fit,
    "eval": _evaluate,
    "predict": _predict,
    "bench": _bench,
}


if __name__ == "__main__":
    run_and_exit(main)

"""Entry point of a rank that torch's elastic agent has started.

`python -m trainer.rank VERB RUN_DIR RESULT [key=value ...]` where the parent process has opened the run; rank 0 writes
what the verb gives to the file RESULT. `python -m trainer.rank join WORDS...` where the ranks of several nodes open it
together.
"""

from __future__ import annotations

# Before all other imports, which would otherwise search the working directory.
from trainer.search_path import search_working_directory_last

search_working_directory_last()

# ruff: noqa: E402
import json
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.errors import EXIT_BUG, EXIT_DONE, EXIT_USER, UserError
from trainer.faults.exit import end_with_parent, run_and_exit
from trainer.faults.signals import stop_before_training
from trainer.launch.error_file import record_error
from trainer.launch.process_group import process_group
from trainer.launch.rank_logs import set_up_rank_logs
from trainer.verbs.prepare import PreparedRun, prepare, take_options
from trainer.verbs.stored_run import own_arguments, prepare_stored


def main() -> int:
    """Run the verb on this rank.

    Returns: exit code, 0 also for a stopped run, which the parent learns from the result. Errors are passed to the
    parent, which prints the first one.
    """
    end_with_parent(signal.SIGKILL)
    stop_before_training()
    verb, *arguments = sys.argv[1:]
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().initialize()
    try:
        if verb == "join":
            from trainer.verbs.fit import exit_code, fit_joined

            options, overrides = take_options(arguments)
            return exit_code(fit_joined(prepare(overrides, options)))
        run_dir, result, *words = arguments
        _on_rank(verb, Path(run_dir), Path(result), words)
        return EXIT_DONE
    except UserError as error:
        # The parent prints it once for all ranks.
        record_error(error)
        return EXIT_USER
    except Exception as error:
        # To the log, not to the terminal: the parent prints the first failure of all ranks.
        logging.getLogger("trainer").exception("this rank failed")
        record_error(error)
        return EXIT_BUG


def _on_rank(verb: str, run_dir: Path, result: Path, words: Sequence[str]) -> None:
    prepared = prepare_stored(verb, run_dir, words)
    prepared = replace(prepared, world=replace(prepared.world, launcher="elastic"))
    set_up_rank_logs(run_dir, prepared.world)
    with process_group(prepared.config, prepared.world):
        value = RANK_VERBS[verb](prepared, run_dir, own_arguments(verb, words))
        if prepared.world.rank == 0:
            result.write_text(json.dumps(value), encoding="utf-8")


def _fit(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> dict[str, str]:
    from trainer.verbs.fit import fit_on_rank

    outcome = fit_on_rank(prepared, run_dir)
    return {"status": outcome.status, "cause": outcome.cause}


def _evaluate(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> dict[str, float]:
    from trainer.verbs.evaluate import evaluate_on_rank

    return evaluate_on_rank(prepared, run_dir, arguments)


def _predict(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> str | None:
    from trainer.verbs.predict import predict_on_rank

    return predict_on_rank(prepared, run_dir, arguments)


def _bench(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> dict[str, Any]:
    from trainer.verbs.bench.on_rank import bench_on_rank

    return bench_on_rank(prepared, run_dir, arguments)


RANK_VERBS: Mapping[str, Callable[[PreparedRun, Path, Sequence[str]], Any]] = {
    "fit": _fit,
    "eval": _evaluate,
    "predict": _predict,
    "bench": _bench,
}


if __name__ == "__main__":
    run_and_exit(main)

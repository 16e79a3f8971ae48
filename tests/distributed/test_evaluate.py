"""eval gives what training has logged, on any number of ranks, and tells what is wrong with a run."""

import json
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS, CommandLine

from trainer.cli import main
from trainer.run.metrics_file import read_metrics


def test_eval_repeats_the_best_validation_on_one_rank_and_two(command_line: CommandLine, in_directory: Path) -> None:
    assert main([*SPIRALS_WORDS, "data.num_validation=61", "batch.eval_size=20"]) == 0
    (run,) = (in_directory / "outputs" / "spirals").iterdir()
    best = max((line for line in read_metrics(run) if "val/accuracy" in line), key=lambda line: line["val/accuracy"])
    assert main(["eval", f"run={run}"]) == 0
    once = json.loads((run / "eval.json").read_text())
    assert once["val/accuracy"] == best["val/accuracy"]
    assert once["val/loss"] == pytest.approx(best["val/loss"], abs=1e-6)
    done = command_line("eval", f"run={run}", "trainer.devices=2", "batch.global_size=32")
    assert done.returncode == 0, done.stderr
    twice = json.loads((run / "eval.json").read_text())
    assert twice["val/accuracy"] == once["val/accuracy"]
    assert twice["val/loss"] == pytest.approx(once["val/loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval"], "needs run=DIR"),
        (["eval", "run=nowhere"], "not a run directory"),
        (["eval", "run=unfinished"], "no model.safetensors yet"),
        (["eval", "run=unfinished", "trainer.precission=32-true"], "trainer.precission"),
        (["predict", "run=unfinished", "n=3"], "has no predict"),
    ],
)
def test_what_is_wrong_with_a_run_is_told(
    words: list[str], told: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.run.directory import open_run
    from trainer.verbs.prepare import Options, prepare

    plan = prepare([*SPIRALS_WORDS, "run.name=unfinished", "run.root=runs"], Options())
    run = open_run(plan.config, plan.mapping)
    run.close()
    (in_directory / "unfinished").symlink_to(run.directory.resolve())
    assert main(words) == 2
    captured = capsys.readouterr().err
    assert told in captured
    assert len(captured.strip().split("\n")) <= 3

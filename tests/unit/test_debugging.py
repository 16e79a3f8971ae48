"""fast_dev_run, overfit_batches, max_time, profiler and print_config: what Lightning's users expect of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SPIRALS_WORDS
from runs import only_run
from several_lines import on_ranks

from trainer.cli import main
from trainer.config.compose import compose_mapping, typed
from trainer.data.samplers import RepeatedSampler, ShuffledSampler
from trainer.engine.time_limit import TimeLimit, seconds
from trainer.run.metrics_file import read_metrics

WORDS = [*SPIRALS_WORDS, "trainer.enable_progress_bar=false", "data.num_test=40"]


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def evaluations(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run) if "val/loss" in line]


@pytest.mark.parametrize("words", [["debug=fdr"], ["fast_dev_run=2", "max_epochs=9", "monitor.patience=1"]], ids=str)
def test_fast_dev_run_does_everything_and_leaves_nothing(
    words: list[str], in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *words]) == 0
    printed = capsys.readouterr().out
    assert "test/accuracy" in printed and "val/accuracy" in printed and "nothing of it is kept" in printed
    assert ("2 steps done" if "fast_dev_run=2" in words else "1 step done") in printed
    assert "outputs/spirals" not in printed
    assert [path for path in in_directory.rglob("*") if path != in_directory / "outputs"] == []


def test_a_failed_fast_dev_run_is_kept_to_be_read(in_directory: Path) -> None:
    assert main([*WORDS, "debug=fdr", "monitor.metric=val/f1"]) == 2
    assert record(only_run(in_directory / "outputs" / "fast_dev_run"))["status"] == "failed"


@pytest.mark.parametrize("task", ["cnn", "dcgan", "bert"])
def test_the_values_that_count_are_composed(task: str) -> None:
    config, _ = typed(compose_mapping([f"task={task}", "fast_dev_run=3", "run.root=${oc.env:HOME}/runs"]))
    trainer = config.trainer
    assert (trainer.max_epochs, trainer.max_steps, trainer.check_val_every_n_epoch) == (1, 3, 1)
    assert (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches) == (3, 3, 3)
    assert (config.logger, config.run.root) == ({}, f"{os.environ['HOME']}/runs/fast_dev_run")
    config, _ = typed(compose_mapping([f"task={task}", "overfit_batches=0.25"]))
    assert (config.trainer.limit_train_batches, config.trainer.limit_val_batches) == (0.25, 0.25)


def test_overfit_batches_are_the_same_samples_in_every_epoch(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = ShuffledSampler(40, 8, seed=1)
    assert [list(b) for b in shuffled.epoch_batches(0)] != [list(b) for b in shuffled.epoch_batches(1)]
    assert RepeatedSampler(shuffled).num_steps == 5
    assert main([*WORDS, "fast_dev_run=1"]) == 0  # imports the plugin
    from spirals.data import Points  # pyright: ignore[reportMissingImports]

    seen: dict[int, list[list[int]]] = {}
    gather = Points.gather

    def recorded(self: Any, indices: Any, num_valid: int, epoch: int) -> Any:
        if len(self) == 500:
            seen.setdefault(epoch, []).append(indices.tolist())
        return gather(self, indices, num_valid, epoch)

    monkeypatch.setattr(Points, "gather", recorded)
    words = [*WORDS, "debug=overfit", "max_epochs=3", "run.root=here", "performance.prefetch_batches=0"]
    assert main(words) == 0
    run = only_run(in_directory / "here")
    assert evaluations(run) == [3, 6, 9]
    assert len(seen) == 3
    assert seen[0][:3] == seen[1][:3] == seen[2][:3]


class Clock:
    """Time that passes only with trained steps, a second in each; `stop_after` steps it sends this process SIGTERM."""

    def __init__(self, patch: pytest.MonkeyPatch, stop_after: int = 0) -> None:
        self.now_s = 0.0
        after_step = TimeLimit.on_train_batch_end

        def timed(*arguments: Any) -> None:
            self.now_s += 1.0
            if self.now_s == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)
            after_step(*arguments)

        patch.setattr(TimeLimit, "on_train_batch_end", timed)
        patch.setattr("trainer.engine.time_limit.time.monotonic", lambda: self.now_s)


def test_max_time_ends_with_an_evaluation_and_a_resumed_run_continues_its_clock(in_directory: Path) -> None:
    words = [*WORDS, "max_time=00:00:00:20", "max_epochs=4"]
    with pytest.MonkeyPatch.context() as patch:
        Clock(patch)
        assert main([*words, "run.name=once"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        Clock(patch, stop_after=18)
        assert main([*words, "run.name=twice"]) == 75
    with pytest.MonkeyPatch.context() as patch:
        Clock(patch)
        assert main([*words, "run.name=twice"]) == 0
    once, twice = (in_directory / "outputs" / "spirals" / name for name in ("once", "twice"))
    for run in (once, twice):
        assert evaluations(run) == [16, 20]
        assert record(run)["status"] == "finished"
        assert record(run)["attempts"][-1]["cause"] == "ended after step 20: trainer.max_time=00:00:00:20 is reached"
        assert (run / "checkpoints" / "last").resolve().name == "step-00000020"
    assert (once / "model.safetensors").read_bytes() == (twice / "model.safetensors").read_bytes()


def test_a_duration_in_seconds() -> None:
    assert seconds("01:02:03:04") == 93784


def test_the_configuration_is_printed_before_training_and_a_profile_is_written(
    in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "debug=profiler", "max_epochs=1", "limit_train_batches=4", "run.root=here", "print_config=true"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    run = only_run(in_directory / "here")
    composed, _, rest = printed.partition(str(run.relative_to(in_directory)))
    assert yaml.safe_load(composed) == yaml.safe_load((run / "config.yaml").read_text())
    assert f"profile  {run.relative_to(in_directory)}/profile" in rest
    assert "run_training_batch" in (run / "profile" / "fit-hooks-rank-0.txt").read_text()
    assert "profile" not in compose_mapping(WORDS)["run"]


def test_two_ranks(tmp_path: Path) -> None:
    lines = {
        "fdr": ["debug=fdr"],
        "overfit": ["overfit_batches=2", "max_epochs=2"],
        "max_time": ["max_time=0:00:00:00"],
        "profiler": ["profiler=torch", "profiler.steps=[3,4]", "max_epochs=1", "limit_train_batches=8"],
    }
    for name in lines:
        (tmp_path / name).mkdir()
    codes = on_ranks(2, tmp_path, [(tmp_path / name, [*WORDS, *words]) for name, words in lines.items()])
    assert codes == [0, 0, 0, 0]
    assert list((tmp_path / "fdr").rglob("run.json")) == []
    assert evaluations(only_run(tmp_path / "overfit" / "outputs")) == [2, 4]
    limited, profiled = (only_run(tmp_path / name / "outputs") for name in ("max_time", "profiler"))
    # The ranks agree one step after the clock.
    assert evaluations(limited) == [2]
    assert record(limited)["attempts"][-1]["cause"].endswith("trainer.max_time=0:00:00:00 is reached")
    (table,) = (profiled / "profile").glob("*.txt")
    assert "aten::" in table.read_text()

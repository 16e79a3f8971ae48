"""Which checkpoint is the best, when training stops early, and what is never overwritten."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, SPIRALS
from pytorch_lightning import Trainer
from watching import run_forked

from trainer.checkpoint.callback import Checkpointing
from trainer.checkpoint.store import CheckpointStore
from trainer.cli import main
from trainer.clock import StepClock
from trainer.engine import train as engine
from trainer.run.metrics_file import read_metrics

# 5 steps an epoch; the accuracy of epoch N is the Nth of EVALUATED.
WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "data.num_points=160",
    "trainer.max_epochs=6",
    "trainer.enable_progress_bar=false",
    "run.name=run",
]
RUN = Path("outputs", "faulty", "run")


def best_step() -> int:
    return int((RUN / "checkpoints" / "best").resolve().name.removeprefix("step-"))


def record() -> dict[str, Any]:
    return json.loads((RUN / "run.json").read_text())


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, in_directory: Path) -> Any:
    return lambda values: monkeypatch.setenv("EVALUATED", ",".join(str(value) for value in values))


@pytest.mark.parametrize(
    ("mode", "values", "last"),
    [
        ("max", [0.1, 0.2, 0.3, 0.3, 0.2, 0.9], 25),
        ("min", [0.9, 0.8, 0.7, 0.8, 0.7, 0.1], 25),
        ("max", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 30),
    ],
)
def test_patience_counts_evaluations_without_improvement(
    mode: str, values: list[float], last: int, evaluated: Any
) -> None:
    evaluated(values)
    assert main([*WORDS, "monitor.patience=2", f"monitor.mode={mode}"]) == 0
    assert max(line["step"] for line in read_metrics(RUN)) == last
    assert ("early" in record()["attempts"][-1]["cause"]) == (last == 25)


@pytest.mark.parametrize("cadence", [[], ["trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null"]])
@pytest.mark.parametrize("step", [15, 25])
def test_a_kill_after_an_evaluation_keeps_patience(
    step: int, cadence: list[str], evaluated: Any, in_directory: Path
) -> None:
    """The evaluation after step 25 decides to stop."""
    evaluated([0.1, 0.2, 0.3, 0.3, 0.2, 0.9])
    words = [*WORDS, *cadence, "monitor.patience=2"]
    assert run_forked(words, in_directory, prepare=kill_after_saving(step)) == [-signal.SIGKILL]
    assert main(words) == 0
    assert max(line["step"] for line in read_metrics(RUN)) == 25
    assert best_step() == 15


def kill_after_saving(step: int) -> Any:
    def prepare(rank: int) -> None:
        save = Checkpointing.save

        def save_and_die(self: Checkpointing, trainer: Any, *rest: Any) -> None:
            save(self, trainer, *rest)
            if trainer.global_step == step:
                signal.raise_signal(signal.SIGKILL)

        Checkpointing.save = save_and_die

    return prepare


def test_nan_is_never_the_best(evaluated: Any) -> None:
    evaluated(["nan", 0.2, 0.4, "nan", 0.3, "inf"])
    assert main(WORDS) == 0
    assert best_step() == 15


@pytest.mark.parametrize("patience", [[], ["monitor.patience=3"]])
def test_an_unknown_metric_is_a_user_error(
    patience: list[str], in_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*WORDS, "monitor.metric=val/acuracy", *patience]) == 2
    error = capsys.readouterr().err
    assert "monitor.metric=val/acuracy" in error and "did you mean val/accuracy?" in error
    assert "Traceback" not in error


def test_the_best_is_remembered_on_resuming(
    evaluated: Any, monkeypatch: pytest.MonkeyPatch, in_directory: Path
) -> None:
    evaluated([0.1, 0.9, 0.3, 0.4, 0.5, 0.6])
    assert run_forked(WORDS, in_directory, FAULT="sigkill:0:17") == [-signal.SIGKILL]
    assert main(WORDS) == 0
    assert best_step() == 10


def test_a_kill_before_best_is_linked_loses_nothing(evaluated: Any, in_directory: Path) -> None:
    evaluated([0.1, 0.2, 0.9, 0.3, 0.4, 0.5])

    def prepare(rank: int) -> None:
        link = CheckpointStore.link

        def link_or_die(self: CheckpointStore, name: str, target: Path) -> None:
            if target.name == "step-00000015":
                signal.raise_signal(signal.SIGKILL)
            link(self, name, target)

        CheckpointStore.link = link_or_die

    assert run_forked(WORDS, in_directory, prepare=prepare) == [-signal.SIGKILL]
    assert main(WORDS) == 0
    assert best_step() == 15
    assert (RUN / "checkpoints" / "step-00000015").exists()


def test_a_damaged_best_is_replaced_loudly(
    evaluated: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    evaluated([0.1, 0.9, 0.3, 0.4, 0.5, 0.6])
    finish = engine.finish

    def damage_and_finish(*arguments: Any) -> Path:
        (RUN / "checkpoints" / "best" / "state.ckpt").write_bytes(b"damaged")
        return finish(*arguments)

    monkeypatch.setattr(engine, "finish", damage_and_finish)
    assert main(WORDS) == 0
    error = capsys.readouterr().err
    assert "step-00000010, is damaged" in error and "step-00000030" in error


@pytest.mark.parametrize("loss", ["damaged", "gone"])
def test_progress_without_a_valid_checkpoint_is_not_overwritten(
    loss: str, in_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_forked(WORDS, in_directory, FAULT="sigkill:0:12") == [-signal.SIGKILL]
    before = (RUN / "metrics.jsonl").read_bytes()
    checkpoints = CheckpointStore(RUN).checkpoints()
    assert [path.name for path in checkpoints] == ["step-00000005", "step-00000010"]
    for checkpoint in checkpoints:
        if loss == "gone":
            shutil.rmtree(checkpoint)
        else:
            (checkpoint / "state.ckpt").write_bytes(b"damaged")
    assert main(WORDS) == 2
    error = capsys.readouterr().err
    assert "no checkpoint is valid" in error and "run.fresh=true" in error
    assert len(error.strip().split("\n")) <= 3
    assert (RUN / "metrics.jsonl").read_bytes() == before


def test_a_skipped_checkpoint_is_named_and_later_lines_are_cut(
    in_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run_forked([*WORDS, "trainer.log_every_n_steps=1"], in_directory, FAULT="sigkill:0:12") == [-signal.SIGKILL]
    assert read_metrics(RUN)[-1]["step"] == 12
    (RUN / "checkpoints" / "step-00000010" / "state.ckpt").write_bytes(b"damaged")
    assert main([*WORDS, "trainer.log_every_n_steps=1"]) == 0
    assert "step-00000010 is damaged" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(RUN) if "train/loss" in line] == list(range(1, 31))


def test_evaluating_and_saving_are_not_step_time(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def taking(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            now[0] += seconds
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    assert main([*WORDS, "trainer.max_steps=1"]) == 0  # imports the task
    from faulty.module import FaultyModule

    monkeypatch.setattr(engine, "build_clock", lambda world: StepClock(lambda: int(now[0] * 1e9)))
    taking(FaultyModule, "training_step", 1.0)
    taking(FaultyModule, "evaluation_step", 100.0)
    taking(CheckpointStore, "commit", 1000.0)
    taking(Trainer, "_teardown", 10_000.0)
    words = [*WORDS, "run.fresh=true", "run.name=timed"]
    # 30 steps in lines of 4: the last line has two, after the last evaluation.
    assert main([*words, "checkpoint.every_n_steps=3", "trainer.log_every_n_steps=4"]) == 0
    lines = [line for line in read_metrics(RUN.with_name("timed")) if "perf/step_time_s" in line]
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert [line["perf/step_time_s"] for line in lines] == [1.0] * len(lines)
    batch = lines[0]["perf/samples_per_s"]
    assert [line["perf/samples_per_s"] for line in lines] == [batch] * len(lines)


def test_a_second_ctrl_c_ends_at_once(in_directory: Path, capfd: pytest.CaptureFixture) -> None:
    assert run_forked(WORDS, in_directory, FAULT="sigint_twice:0:7") == [75]
    assert record()["status"] == "stopped"
    assert [path.name for path in CheckpointStore(RUN).checkpoints()] == ["step-00000005"]
    error = capfd.readouterr().err
    assert "the same command resumes" in error and "Traceback" not in error
    assert main(WORDS) == 0

"""trainer.fit: the run of the command line, in a process that stays as it was."""

import asyncio
import inspect
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SPIRALS_WORDS
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from runs import only_run
from watching import wait_until

import trainer
from trainer.cli import main
from trainer.config.compose import CONF
from trainer.run.files import MODEL_FILE
from trainer.run.metrics_file import read_metrics

# With dropout, so that weights depend on the random generators.
WORDS = [*SPIRALS_WORDS, "run.report=true", "trainer.max_epochs=2"]
LONG = [*SPIRALS_WORDS, "trainer.max_epochs=120", "trainer.check_val_every_n_epoch=60", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> trainer.RunResult:
    return trainer.fit(*WORDS, f"run.root={tmp_path_factory.mktemp('fit')}")


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("command")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    assert main([*WORDS, f"run.root={root}"]) == 0
    yield only_run(root)
    for number, handler in before.items():
        signal.signal(number, handler)


def weights(run_dir: Path) -> bytes:
    return (run_dir / MODEL_FILE).read_bytes()


def test_weights_are_those_of_the_command_line_bit_for_bit(
    by_command: Path, result: trainer.RunResult, tmp_path: Path
) -> None:
    assert weights(result.run_dir) == weights(by_command)
    other = trainer.fit(*WORDS, f"run.root={tmp_path}", "seed=1")
    assert weights(other.run_dir) != weights(by_command)


def test_a_result_holds_what_the_run_has_logged(result: trainer.RunResult) -> None:
    lines = read_metrics(result.run_dir)
    assert result.status == "finished"
    assert result.run_dir.name == only_run(result.run_dir.parents[1]).name
    assert "Figure" in (result.run_dir / "report.html").read_text()
    last: dict[str, float] = {}
    for line in lines:
        last |= {name: value for name, value in line.items() if name not in ("step", "epoch")}
    assert result.metrics == last
    table = result.history
    assert list(table.index) == sorted({line["step"] for line in lines})
    assert set(table.columns) == set(last)
    for line in lines:
        logged = {name: value for name, value in line.items() if name in last}
        assert table.loc[line["step"], list(logged)].to_dict() == logged
    assert table["val/loss"].notna().sum() == 2
    attempt = json.loads((result.run_dir / "run.json").read_text())["attempts"][0]
    assert attempt["command"][:2] == ["trainer.fit", SPIRALS_WORDS[0]]


def state_after_a_first_call(directory: Path) -> dict[str, Any]:
    """What a call imports stays, and the closed log of an earlier test's command does not."""
    trainer.fit(*WORDS, "trainer.max_steps=1", f"run.root={directory / 'first'}")
    return state_of_the_process()


def state_of_the_process() -> dict[str, Any]:
    loggers = [logging.root, *(logging.getLogger(name) for name in ("trainer", "pytorch_lightning", "py.warnings"))]
    return {
        "python": random.getstate(),
        "numpy": [np.random.get_state()[1].tolist(), np.random.get_state()[2]],  # pyright: ignore
        "torch": torch.get_rng_state().tolist(),
        "handlers": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)],
        "loggers": [(each.level, each.propagate, list(each.handlers)) for each in loggers],
        "warnings": (list(warnings.filters), warnings.showwarning),
        "environment": dict(os.environ),
        "torch settings": [
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.get_default_dtype(),
        ],
        "interpreter": (Path.cwd(), sys.argv, sys.exit, sys.excepthook, sys.stdout, list(sys.path)),
        "threads": {thread.name for thread in threading.enumerate()},
        "group": torch.distributed.is_initialized(),
    }


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.deterministic=true", "trainer.benchmark=true"],
        ["strategy=fsdp2", "trainer.max_steps=2"],
        ["monitor.metric=val/nothing", "strategy=fsdp2"],
    ],
    ids=["settings", "group", "error"],
)
def test_the_process_is_left_as_it_was(words: list[str], tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "own.log")
    logging.root.addHandler(handler)
    try:
        before = state_after_a_first_call(tmp_path)
        if "val/nothing" in words[0]:
            with pytest.raises(trainer.UserError, match=r"monitor\.metric=val/nothing"):
                trainer.fit(*WORDS, *words, f"run.root={tmp_path / 'second'}")
        else:
            trainer.fit(*WORDS, *words, f"run.root={tmp_path / 'second'}")
        assert state_of_the_process() == before
        logging.getLogger("mine").warning("still written")
    finally:
        logging.root.removeHandler(handler)
        handler.close()
    assert "still written" in (tmp_path / "own.log").read_text()


def test_the_log_of_an_earlier_command_is_not_opened_again(in_directory: Path) -> None:
    earlier = in_directory / "earlier"
    assert main([*WORDS, f"run.root={earlier}"]) == 0
    trainer.fit(*WORDS, f"run.root={in_directory / 'later'}")
    shutil.rmtree(earlier)
    logging.getLogger("another").warning("its file has gone")
    assert not earlier.exists()


def test_ctrl_c_saves_and_the_same_call_resumes(tmp_path: Path) -> None:
    """A second call meanwhile, from another thread, is refused."""
    words = [*LONG, f"run.root={tmp_path}"]
    refused: list[str] = []

    def interrupt() -> None:
        wait_until(lambda: any(file.stat().st_size for file in tmp_path.glob("*/*/metrics.jsonl")), 60)
        try:
            trainer.fit(*WORDS)
        except trainer.UserError as error:
            refused.append(str(error))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    stopped = trainer.fit(*words)
    thread.join()
    assert stopped.status == "stopped"
    assert (stopped.run_dir / "checkpoints" / "last").exists()
    assert "another call of trainer is in progress" in refused[0]
    reached = stopped.history.index[-1]
    resumed = trainer.fit(*words)
    assert (resumed.run_dir, resumed.status) == (stopped.run_dir, "finished")
    assert resumed.history.index[0] == 1
    assert reached < resumed.history.index[-1] == 1920


def test_a_stop_within_a_step_is_a_result_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a second Ctrl-C."""

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.engine.train.build_data_and_module", interrupted)
    stopped = trainer.fit(*WORDS, f"run.root={tmp_path}")
    assert (stopped.status, stopped.metrics, len(stopped.history)) == ("stopped", {}, 0)
    monkeypatch.undo()
    assert trainer.fit(*WORDS, f"run.root={tmp_path}").run_dir == stopped.run_dir


def test_in_a_thread_and_in_a_running_event_loop(by_command: Path, tmp_path: Path) -> None:
    async def notebook() -> list[trainer.RunResult]:
        here = trainer.fit(*WORDS, f"run.root={tmp_path / 'loop'}")
        return [here, await asyncio.to_thread(trainer.fit, *WORDS, f"run.root={tmp_path / 'thread'}")]

    for each in asyncio.run(notebook()):
        assert weights(each.run_dir) == weights(by_command)


@pytest.mark.slow
def test_two_ranks_give_the_weights_of_the_command_line(tmp_path: Path, command_line: Any) -> None:
    words = [*WORDS, "trainer.devices=2", "run.name=run"]
    done = command_line(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before = state_after_a_first_call(tmp_path)
    result = trainer.fit(*words, f"run.root={tmp_path / 'python'}")
    assert weights(result.run_dir) == weights(tmp_path / "outputs" / "spirals" / "run")
    assert state_of_the_process() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lrr=1"], "optimizer.lrr=1: no such key"),
        (["optimizer.lr=-1", "seed=x"], "seed=x: "),
        (["task=nothing"], "task=nothing: no such task"),
        (["eval"], "eval: not of the form key=value"),
        (["--cfg", "job"], "--cfg: no such option"),
    ],
)
def test_a_mistake_has_the_text_of_the_command_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], in_directory: Path
) -> None:
    with pytest.raises(trainer.UserError) as caught:
        trainer.fit(*SPIRALS_WORDS, *words)
    assert message in str(caught.value)
    assert len(caught.value.lines) <= 3
    assert not list(in_directory.iterdir())
    if words != ["--cfg", "job"]:  # which is one there
        assert main([*SPIRALS_WORDS, *words]) == 2
        assert capsys.readouterr().err == f"{caught.value}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "optimizer.lr=0.1,0.2"], "-m: a sweep is of the command line"),
        (["launch=slurm", "launch.gpus_per_node=0"], "launch=slurm: submits a job"),
        (
            ["trainer.num_nodes=2", "launch.endpoint=127.0.0.1:29500"],
            "trainer.num_nodes: trainer.fit",
        ),
        ([{"optimizer.lr": 0.1}], "is no text"),
    ],
)
def test_what_only_the_command_line_does_is_refused(words: list[Any], message: str, in_directory: Path) -> None:
    with pytest.raises(trainer.UserError) as caught:
        trainer.fit(*SPIRALS_WORDS, *words)
    assert message in str(caught.value)
    assert len(caught.value.lines) <= 3


def test_compose_gives_what_fit_trains_with() -> None:
    config = trainer.compose(*WORDS, "trainer.devices=8", "optimizer.lr=0.25")
    assert (config.optimizer.lr, config.trainer.devices, config.trainer.max_epochs) == (0.25, 8, 2)
    with pytest.raises(trainer.UserError, match=r"optimizer\.lrr=1: no such key"):
        trainer.compose(*WORDS, "optimizer.lrr=1")
    with pytest.raises(trainer.UserError, match=r"batch\.global_size"):
        trainer.compose(*WORDS, "trainer.devices=7")


def test_an_application_of_hydra_keeps_its_own() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        own = GlobalHydra.instance().hydra
        trainer.compose(*WORDS)
        assert GlobalHydra.instance().hydra is own


def test_public_names_are_functions_with_documentation() -> None:
    for name in trainer.__all__:
        value = getattr(trainer, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert inspect.isfunction(trainer.fit)
    assert set(trainer.__all__) <= set(dir(trainer))
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        trainer.fitt  # noqa: B018  # pyright: ignore


def test_runs_are_a_table(result: trainer.RunResult, tmp_path: Path) -> None:
    root = tmp_path / "outputs"
    for folder in ("empty", "torn", "unlogged"):
        (root / "spirals" / folder).mkdir(parents=True)
    for name in ("torn", "unlogged"):
        (root / "spirals" / name / "config.yaml").write_text((result.run_dir / "config.yaml").read_text())
        (root / "spirals" / name / "run.json").write_text((result.run_dir / "run.json").read_text())
    (root / "spirals" / "torn" / "run.json").write_text('{"status": ')
    (root / "spirals" / "whole").symlink_to(result.run_dir)
    table = trainer.runs(root)
    assert dict(zip(table["run_dir"], table["status"], strict=True)) == {
        str(root / "spirals" / "torn"): "damaged",
        str(root / "spirals" / "unlogged"): "finished",
    }
    assert "run.json" in table.set_index("status").loc["damaged", "problem"]  # pyright: ignore
    (row,) = trainer.runs(result.run_dir.parents[1]).to_dict("records")
    assert (row["status"], row["task"], row["step"]) == ("finished", "spirals", 32)
    assert row["best"] == max(result.history[row["monitor"]].dropna())
    assert Path(row["run_dir"]) == result.run_dir
    assert isinstance(row["start"], pd.Timestamp)
    empty = trainer.runs(root / "spirals" / "empty")
    assert (len(empty), list(empty.columns)) == (0, list(table.columns))
    with pytest.raises(trainer.UserError, match="no such directory"):
        trainer.runs(root / "nowhere")


@pytest.mark.slow
def test_a_script_under_torchrun_trains_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(f"""
import os
import trainer
words = {[*WORDS, "trainer.enable_progress_bar=false"]!r}
result = trainer.fit(*words)
print("rank", os.environ["RANK"], result.status, result.run_dir, flush=True)
try:
    trainer.fit(*words)
except trainer.UserError as error:
    print("refused", error.lines[0], flush=True)
""")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "outputs").relative_to(tmp_path)
    assert [f"rank {rank} finished {run}" in done.stdout for rank in (0, 1)] == [True, True]
    assert done.stdout.count("refused trainer.fit: the ranks of torchrun or srun have met") == 2

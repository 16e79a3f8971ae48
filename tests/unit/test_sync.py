"""A run on the W&B server: every logged step once, with the values of metrics.jsonl, however many attempts it took."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, SPIRALS
from PIL import Image
from wandb_server import WandbServer
from watching import run_forked

from trainer.cli import main
from trainer.run.files import LOCK_FILE, lock_file
from trainer.run.record import Record

# 16 steps an epoch; lines at every third step, an evaluation at every fifth and at the end, where there is a test too.
WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "task.name=faulty",
    "trainer.accelerator=cpu",
    "model.dropout=0.3",
    "data.num_test=50",
    "trainer.max_steps=23",
    "trainer.val_check_interval=5",
    "trainer.log_every_n_steps=3",
    "trainer.enable_progress_bar=false",
    "logger=wandb",
]

WANDB = Path(sys.executable).with_name("wandb")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as running, running.client(monkeypatch):
        yield running


def only_run(directory: Path) -> Path:
    (run,) = (directory / "outputs" / "faulty").iterdir()
    return run


def expected(run: Path) -> dict[int, dict[str, float]]:
    """The lines of metrics.jsonl by step."""
    rows: dict[int, dict[str, float]] = {}
    for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]:
        values = json.loads(line)
        rows.setdefault(values.pop("step"), {}).update(values)
    return rows


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """What was logged, without what wandb adds and without media."""
    return {name: value for name, value in row.items() if name[0] != "_" and isinstance(value, (int, float))}


def assert_same(server: WandbServer, run: Path) -> None:
    """The server has each line once and nothing else."""
    history = server.runs[Record(run).read()["wandb_id"]].history
    wanted = expected(run)
    assert [row["_step"] for row in history] == list(wanted)
    assert [numbers(row) for row in history] == [pytest.approx(row, rel=1e-12) for row in wanted.values()]


def untimed(server: WandbServer, run: Path) -> list[dict[str, float]]:
    history = server.runs[Record(run).read()["wandb_id"]].history
    return [{name: v for name, v in numbers(row).items() if not name.startswith("perf/")} for row in history]


def test_three_offline_attempts_are_the_run_of_one(
    server: WandbServer, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = [*WORDS, "logger.mode=offline"]
    assert run_forked(words, in_directory, FAULT="sigkill:0:8") == [-signal.SIGKILL]
    assert run_forked(words, in_directory, FAULT="sigterm:0:16") == [75]
    run = only_run(in_directory)
    assert main(["sync", f"run={run}"]) == 0
    assert_same(server, run)
    of_server = server.runs[Record(run).read()["wandb_id"]]
    assert of_server.exit_code == 1
    assert run_forked(words, in_directory) == [0]
    Image.new("L", (4, 4)).save(run / "confusion_val.png")
    (run / "predictions.csv").write_text("text,label\nyes,1\n,0\n")
    (run / "damaged.png").write_bytes(b"no picture")
    assert main(["sync", f"run={run}"]) == 0
    assert_same(server, run)
    assert list(expected(run)) == [3, 5, 6, 9, 10, 12, 15, 18, 21, 23]
    assert of_server.exit_code == 0
    last = of_server.history[-1]
    assert (last["val/confusion"]["_type"], last["predictions"]["nrows"]) == ("images/separated", 2)
    assert "damaged" not in last
    assert [a.entries for a in server.artifacts if a.kind == "model" and a.committed] == [["model.safetensors"]]
    assert of_server.config["trainer"]["value"]["max_steps"] == 23
    losses = [row["val/loss"] for row in expected(run).values() if "val/loss" in row]
    assert of_server.summary["val/loss"] == {"min": min(losses), "last": losses[-1]}
    capsys.readouterr()

    # Once more: nothing is sent twice.
    num_sent, files = len(of_server.sent), dict(of_server.files)
    server.requests.clear()
    assert main(["sync", f"run={run}"]) == 0
    assert "0 steps sent, 10 there before" in capsys.readouterr().out
    assert len(of_server.sent) == num_sent == 10
    assert not [request for request in server.requests if "/media/" in request or "/artifacts/" in request]
    assert of_server.summary["val/loss"] == {"min": min(losses), "last": losses[-1]}
    assert {name: content for name, content in of_server.files.items() if "media" in name} == {
        name: content for name, content in files.items() if "media" in name
    }

    # A run of one attempt, online, has logged the same.
    once = in_directory / "once"
    once.mkdir()
    assert run_forked(WORDS, once, **server.environment) == [0]
    assert_same(server, only_run(once))
    assert untimed(server, only_run(once)) == untimed(server, run)
    of_once = {a.kind for a in server.artifacts if a.run == Record(only_run(once)).read()["wandb_id"]}
    assert {"model", "report"} <= of_once


def test_an_online_run_that_was_killed_has_each_step_once(server: WandbServer, in_directory: Path) -> None:
    """The first attempt is killed before all of its lines are sent, the second is offline and stopped."""
    assert run_forked(WORDS, in_directory, FAULT="sigkill:0:8", **server.environment) == [-signal.SIGKILL]
    assert run_forked([*WORDS, "logger.mode=offline"], in_directory, FAULT="sigterm:0:16") == [75]
    assert run_forked(WORDS, in_directory, **server.environment) == [0]
    run = only_run(in_directory)
    assert_same(server, run)
    of_server = server.runs[Record(run).read()["wandb_id"]]
    assert len(of_server.sent) == len(of_server.history)
    assert (of_server.exit_code, of_server.settings["displayName"]) == (0, run.name)


def test_wrong_words_and_runs(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("NETRC", str(in_directory / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    empty = in_directory / "empty"
    empty.mkdir()
    (empty / "run.json").write_text(json.dumps({"status": "finished", "attempts": [], "wandb_id": "0badcafe"}))
    (empty / "config.yaml").write_text("monitor: {metric: val/loss, mode: min}\n")

    def message(*words: str) -> str:
        assert main(["sync", *words]) == 2
        error = capsys.readouterr().err
        assert 1 <= len(error.strip().split("\n")) <= 3
        return error

    assert "needs run=DIR" in message()
    assert "out=x: sync takes only run=DIR" in message("run=empty", "out=x")
    assert "given twice" in message("run=empty", "run=./empty")
    assert "no such directory" in message("run=nowhere")
    assert "no complete line in metrics.jsonl" in message("run=empty")
    (empty / "metrics.jsonl").write_text('{"step": 3, "train/loss": 1.0}\n{"step": 6, "tr\n{"step": 9}\n')
    assert "line 2 of metrics.jsonl is damaged" in message("run=empty")
    (empty / "metrics.jsonl").write_text('{"step": 3, "train/loss": 1.0}\n')
    assert "WANDB_API_KEY" in message("run=empty")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert "set WANDB_BASE_URL" in message("run=empty")
    (empty / "wandb" / "run-20261130_010203-0badcafe").mkdir(parents=True)
    with lock_file(empty / LOCK_FILE, "process 1"):
        assert "is being trained online" in message("run=empty")
    (empty / "config.yaml").write_text("logger: {wandb: {project: '${oc.env:NO_SUCH}'}}\n")
    assert "NO_SUCH" in message("run=empty")
    assert "WANDB_API_KEY" in os.environ


def test_a_refused_key_is_a_user_error(
    server: WandbServer, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = in_directory / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"status": "finished", "attempts": [], "wandb_id": "0badcafe"}))
    (run / "config.yaml").write_text("seed: 1\n")
    (run / "metrics.jsonl").write_text('{"step": 3, "train/loss": NaN}\n')
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert main(["sync", "run=run"]) == 2
    error = capsys.readouterr().err
    assert "run=run: W&B refuses it" in error and len(error.strip().split("\n")) <= 3
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert main(["sync", "run=run"]) == 0
    (row,) = server.runs["0badcafe"].history
    assert row["_step"] == 3 and math.isnan(row["train/loss"])
    assert server.runs["0badcafe"].settings["project"] == "trainer"


def test_a_run_that_trains_offline_keeps_its_last_step(server: WandbServer, in_directory: Path) -> None:
    """Its row may not be complete: the evaluation after it logs at the same step."""
    run = in_directory / "run"
    (run / "wandb" / "offline-run-20261130_010203-0badcafe").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"status": "running", "attempts": [], "wandb_id": "0badcafe"}))
    (run / "config.yaml").write_text("logger: {wandb: {project: p, tags: [a]}}\n")
    (run / "metrics.jsonl").write_text('{"step": 3, "train/loss": 2.0}\n{"step": 6, "train/loss": 1.0}\n')
    with lock_file(run / LOCK_FILE, "process 1"):
        assert main(["sync", "run=run"]) == 0
    assert [row["_step"] for row in server.runs["0badcafe"].history] == [3]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "val/loss": 4.0}\n{"step": 9, "tra')
    assert main(["sync", "run=run"]) == 0
    assert_same(server, run)
    settings = server.runs["0badcafe"].settings
    assert (settings["project"], settings["tags"]) == ("p", ["a"])


def test_the_agent_of_a_sweep_finds_its_run(
    server: WandbServer, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wandb agent` sets these variables; an unfinished run of the same values goes on under the new id, completely."""
    words = [*WORDS, "trainer.max_steps=6"]
    assert run_forked([*words, "logger.mode=offline"], in_directory, FAULT="sigterm:0:4") == [75]
    run = only_run(in_directory)
    parameters = in_directory / "config-a1b2c3d4.yaml"
    parameters.write_text("wandb_version: 1\noptimizer.lr:\n  value: 0.1\n")
    agent = {"WANDB_SWEEP_ID": "sw33p", "WANDB_RUN_ID": "a1b2c3d4", "WANDB_SWEEP_PARAM_PATH": str(parameters)}
    agent |= {"WANDB_PROJECT": "agents", "WANDB_ENTITY": "loopback"}
    assert run_forked(words, in_directory, **server.environment, **agent) == [0]
    assert list(server.runs) == ["a1b2c3d4"]
    assert Record(run).read()["wandb_id"] == "a1b2c3d4"
    assert_same(server, run)
    settings = server.runs["a1b2c3d4"].settings
    assert (settings["sweep"], settings["project"]) == ("sw33p", "agents")
    assert server.runs["a1b2c3d4"].summary["val/loss"] == expected(run)[6]["val/loss"]


@pytest.mark.slow
def test_what_wandb_sync_does_with_several_attempts(server: WandbServer, in_directory: Path) -> None:
    """The reason for a verb of our own, as docs/wandb.md tells it. Where this fails, a newer wandb may do better."""
    words = [*WORDS, "logger.mode=offline", "checkpoint.at_evaluation=false", "checkpoint.every_n_steps=5"]
    assert run_forked(words, in_directory, FAULT="sigkill:0:14") == [-signal.SIGKILL]
    assert run_forked(words, in_directory, FAULT="sigterm:0:16") == [75]
    assert run_forked(words, in_directory) == [0]
    run = only_run(in_directory)
    for folder in sorted((run / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime):
        subprocess.run([WANDB, "sync", str(folder)], check=True)
    steps = [row["_step"] for row in server.runs[Record(run).read()["wandb_id"]].history]
    assert steps != list(expected(run))

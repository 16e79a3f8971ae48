"""Whatever the W&B server does, a run computes the same, ends soon and well, and is complete after a later sync."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from _pytest.mark import ParameterSet
from conftest import SPIRALS
from PIL import Image
from two_ranks import in_one_process, only_run
from wandb_server import Fault, WandbServer
from watching import wait_until

import trainer.observe.wandb as wandb_logger
from trainer.cli import main
from trainer.run.metrics_file import read_metrics
from trainer.run.record import Record

WORDS = [
    f"plugins=[{SPIRALS}]",
    "task=spirals",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "model.dropout=0.3",
    "trainer.max_steps=23",
    "trainer.val_check_interval=5",
    "trainer.log_every_n_steps=3",
    "run.name=run",
]
PICTURE_STEP, FAULT_STEP = 6, 12
# What a run may take longer than without W&B.
LONGER_S = 30.0
FAULTS: tuple[Fault, ...] = ("hangs", "gone", "401", "429", "500")


def with_cost(fault: Fault, slow: Fault) -> ParameterSet:
    """Each takes most of a minute, since the client waits. Args: slow: the one that CI has time for."""
    return pytest.param(fault, marks=pytest.mark.slow if fault == slow else pytest.mark.long)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run without W&B, and the seconds that it has taken."""
    began = time.monotonic()
    run = in_one_process(tmp_path_factory.mktemp("plain") / "plain", [*WORDS, "logger=none"])
    return run, time.monotonic() - began


def untimed(run: Path) -> list[dict[str, Any]]:
    return [{name: v for name, v in row.items() if not name.startswith("perf/")} for row in read_metrics(run)]


def assert_same_training(run: Path, plain: Path) -> None:
    assert (run / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert untimed(run) == untimed(plain)
    assert Record(run).read()["status"] == "finished"


def assert_complete(server: WandbServer, run: Path, pictures: int) -> None:
    """After a sync the server has each row once, the files that rows name, and the artifacts."""
    server.fault = None
    server.refuses_files = False
    assert main(["sync", f"run={run}"]) == 0
    of_server = server.runs[Record(run).read()["wandb_id"]]
    assert [row["_step"] for row in of_server.history] == sorted({row["step"] for row in read_metrics(run)})
    named = [value for row in of_server.history for value in row.values() if isinstance(value, dict)]
    files = [name for value in named for name in value.get("filenames", [value.get("path")])]
    assert len(files) >= pictures and set(files) <= set(of_server.files)
    assert {artifact.kind for artifact in server.artifacts if artifact.committed} >= {"model", "report"}


def meets(
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    strike: Callable[[wandb_logger.StepLogger], None],
    after_rows: bool = True,
) -> list[float]:
    """Log a picture, and let something happen to W&B half-way.

    Args: after_rows: once the server has had rows; wandb sends them every 15 s.
    Returns: a list that will hold the seconds of waiting for these.
    """
    waited: list[float] = []
    send_row = wandb_logger.StepLogger.send_row

    def send_and_strike(logger: wandb_logger.StepLogger) -> None:
        step = logger.step
        if step == PICTURE_STEP and logger.row:
            path = logger.run_dir / "samples" / f"step-{step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("L", (4, 4)).save(path)
            logger.row["samples"] = [wandb.Image(str(path))]
        send_row(logger)
        if step == FAULT_STEP:
            began = time.monotonic()
            wait_until(lambda: not after_rows or any(run.sent for run in server.runs.values()), 30)
            waited.append(time.monotonic() - began)
            strike(logger)

    monkeypatch.setattr(wandb_logger.StepLogger, "send_row", send_and_strike)
    return waited


def train(directory: Path) -> tuple[Path, float]:
    """Train with W&B. Returns: the run, and the seconds to the end of its process, which waits for wandb's service."""
    began = time.monotonic()
    assert main([*WORDS, "logger=wandb"]) == 0
    wandb.teardown()
    return only_run(directory), time.monotonic() - began


def shorter_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INIT_TIMEOUT_S", "ARTIFACTS_TIMEOUT_S", "FINISH_TIMEOUT_S"):
        monkeypatch.setattr(wandb_logger, name, 0.5)


@pytest.mark.slow
def test_a_server_that_never_answers(
    plain: tuple[Path, float],
    in_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shorter_limits(monkeypatch)
    with WandbServer() as server, server.client(monkeypatch):
        server.fault = "hangs"
        run, _ = train(in_directory)
        error = capfd.readouterr().err
        assert error.startswith("warning: W&B is offline: the server does not take the run: ")
        assert error.count("\n") == 1
        assert_same_training(run, plain[0])
        assert_complete(server, run, pictures=0)


def test_a_server_that_goes_half_way(
    plain: tuple[Path, float],
    in_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shorter_limits(monkeypatch)
    with WandbServer() as server, server.client(monkeypatch):
        meets(server, monkeypatch, lambda logger: setattr(server, "fault", "gone"), after_rows=False)
        run, _ = train(in_directory)
        advice = f"this uploads the rest: python -m trainer sync run={run.relative_to(in_directory)}\n"
        assert capfd.readouterr().err == f"warning: W&B has not received everything within 0.5 s; {advice}"
        assert_same_training(run, plain[0])
        assert server.runs and not any(each.history for each in server.runs.values())
        assert_complete(server, run, pictures=1)


@pytest.mark.parametrize("fault", [with_cost(fault, "hangs") for fault in FAULTS])
def test_a_fault_from_the_start(
    fault: Fault, plain: tuple[Path, float], in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WandbServer() as server, server.client(monkeypatch):
        server.fault = fault
        run, seconds = train(in_directory)
        assert seconds < plain[1] + LONGER_S
        assert_same_training(run, plain[0])
        assert_complete(server, run, pictures=0)


@pytest.mark.parametrize("fault", [with_cost(fault, "gone") for fault in FAULTS])
def test_a_fault_half_way(
    fault: Fault, plain: tuple[Path, float], in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WandbServer() as server, server.client(monkeypatch):
        waited = meets(server, monkeypatch, lambda logger: setattr(server, "fault", fault))
        run, seconds = train(in_directory)
        assert seconds - sum(waited) < plain[1] + LONGER_S
        assert_same_training(run, plain[0])
        assert_complete(server, run, pictures=1)


@pytest.mark.slow
def test_pictures_that_are_refused(
    plain: tuple[Path, float], in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has all rows, and not the files that they name."""
    with WandbServer() as server, server.client(monkeypatch):
        waited = meets(server, monkeypatch, lambda logger: None)
        server.refuses_files = True
        run, seconds = train(in_directory)
        assert seconds - sum(waited) < plain[1] + LONGER_S
        assert_complete(server, run, pictures=1)


@pytest.mark.slow
def test_a_client_that_is_killed(
    plain: tuple[Path, float],
    in_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """wandb's own process, as by the kernel where memory is short."""

    def kill(logger: wandb_logger.StepLogger) -> None:
        services = [each for each in psutil.Process().children() if each.name() == "wandb-core"]
        assert services
        for service in services:
            service.kill()
            service.wait()

    with WandbServer() as server, server.client(monkeypatch):
        meets(server, monkeypatch, kill)
        run, _ = train(in_directory)
        first, second = capfd.readouterr().err.strip().split("\n")
        assert first.startswith("warning: W&B has failed at step ")
        assert second.startswith("warning: W&B has not received everything within 20 s; this uploads the rest: ")
        assert_same_training(run, plain[0])
        assert_complete(server, run, pictures=1)


@pytest.mark.slow
def test_a_missing_key_is_not_asked_for(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal, with a file that has only the key of another server."""
    (in_directory / "netrc").write_text("machine wandb.example.com login user password " + "0" * 40 + "\n")
    with WandbServer() as server:
        environment = {**os.environ, **server.environment, "WANDB_SILENT": "false"}
        environment["NETRC"] = str(in_directory / "netrc")
        del environment["WANDB_API_KEY"]
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "trainer", *WORDS, "logger=wandb"]
        with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # the end of the terminal
                while chunk := os.read(ours, 4096):
                    shown += chunk
        os.close(ours)
        assert process.returncode == 0
    assert b"W&B is offline: the server does not take the run: No API key configured" in shown
    assert json.loads((only_run(in_directory) / "run.json").read_text())["status"] == "finished"

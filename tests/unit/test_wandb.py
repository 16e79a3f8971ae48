"""W&B: the run has what the configuration says, and a missing key, route or server does not delay it."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS
from wandb_server import WandbServer

import trainer.observe.wandb as wandb_logger
from trainer.cli import main
from trainer.config.loggers import WandbLoggerConfig
from trainer.errors import UserError
from trainer.observe.wandb import build_wandb_logger, can_reach_wandb, finish_wandb
from trainer.run.files import write_json
from trainer.run.record import Record

CONFIG = WandbLoggerConfig(project="letters", entity=None, group="sizes", tags=["a", "b"], notes="why", mode="auto")


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def test_a_run_has_what_the_configuration_says(no_key: None, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"wandb_id": "0badcafe"})
    logger = build_wandb_logger(CONFIG, {"seed": 3}, Record(tmp_path))
    experiment = logger.experiment
    assert experiment.offline
    assert (experiment.id, experiment.project, experiment.group) == ("0badcafe", "letters", "sizes")
    assert tuple(experiment.tags or ()) == ("a", "b")
    assert (experiment.notes, experiment.name) == ("why", tmp_path.name)
    assert experiment.config["seed"] == 3
    logger.log_metrics({"train/loss": 1.0}, step=5)
    assert finish_wandb(logger, 0, finished=True) == f"python -m trainer sync run={tmp_path}"
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_server_that_vanishes_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_logger, "FINISH_TIMEOUT_S", 0.5)
    write_json(tmp_path / "run.json", {"wandb_id": "0badcafe"})
    with WandbServer() as server, server.client(monkeypatch):
        logger = build_wandb_logger(CONFIG, {"seed": 3}, Record(tmp_path))
        assert not logger.run.offline
        logger.log_metrics({"train/loss": 1.0}, step=5)
        server.stop()
        assert finish_wandb(logger, 0, finished=True) == f"python -m trainer sync run={tmp_path}"
    assert "has not received everything within 0.5 s" in caplog.text


def test_a_refused_key_is_offline_or_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(tmp_path / "run.json", {"wandb_id": "0badcafe"})
    with WandbServer() as server, server.client(monkeypatch):
        server.fault = "401"
        with pytest.raises(UserError, match=r"mode=online: W&B refuses the run: .*401"):
            build_wandb_logger(replace(CONFIG, mode="online"), {}, Record(tmp_path))
        logger = build_wandb_logger(CONFIG, {}, Record(tmp_path))
        assert logger.run.offline
        assert finish_wandb(logger, 0, finished=True).startswith("python -m trainer sync")
    assert "W&B is offline: the server does not take the run: Failed to" in caplog.text


def test_a_key_without_a_route_is_offline(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    assert not can_reach_wandb()
    assert "cannot be reached" in caplog.text


def test_a_route_and_a_key_are_online(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert can_reach_wandb()


def test_training_and_resuming_are_one_run(no_key: None, in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [word for word in SPIRALS_WORDS if word != "logger=none"]
    assert main([*words, "trainer.max_epochs=1"]) == 0
    (run,) = (in_directory / "outputs" / "spirals").iterdir()
    # As after a power failure before the end was recorded.
    Record(run).update(status="running")
    assert main([*words, "trainer.max_epochs=1"]) == 0
    wandb_id = Record(run).read()["wandb_id"]
    folders = [folder.name for folder in (run / "wandb").iterdir() if folder.name.startswith("offline-run")]
    assert folders
    # offline-run-TIME-ID, with another number for one that began in the same second.
    assert {name.split("-")[3] for name in folders} == {wandb_id}
    # Earlier tests have started wandb's service in another directory, which must not be where it writes.
    assert len(list((run / "wandb").glob("offline-run*/*.wandb"))) == len(folders)
    assert "WANDB_API_KEY" not in os.environ

"""What the tests of an application share: its trained model."""

import json
from pathlib import Path

import pytest
from sentiment_application import STREAM

from examples.sentiment_monitor.__main__ import main
from examples.sentiment_monitor.generated import write_stream
from examples.sentiment_monitor.settings import DEFAULT, Settings, read_settings
from examples.sentiment_monitor.training import TrainedModel

HISTORY = "history_windows: 24"


@pytest.fixture(scope="session")
def sentiment_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the sentiment monitor has trained, with settings of a short history in monitor.yaml."""
    folder = tmp_path_factory.mktemp("sentiment")
    size = ["model.num_layers=1", "model.hidden_size=64", "optimizer.lr=3e-3", "trainer.max_epochs=3"]
    words = ["model=bert_tiny", *size, "export=false", "trainer.accelerator=cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *words, "trainer.enable_progress_bar=false"]) == 0
    config = DEFAULT.read_text().replace("history_windows: 168", HISTORY)
    assert HISTORY in config
    (folder / "monitor.yaml").write_text(config)
    return folder


@pytest.fixture(scope="module")
def folder(sentiment_folder: Path) -> Path:
    """The model, settings with a short history, and a stream."""
    write_stream(sentiment_folder / "stream.csv", STREAM)
    return sentiment_folder


@pytest.fixture
def settings(folder: Path) -> Settings:
    return read_settings(folder / "monitor.yaml")


@pytest.fixture
def out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application folder with the model and no store."""
    trained = TrainedModel.read(folder / "outputs" / "sentiment_monitor")
    place = str(folder / trained.run)
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.json").write_text(json.dumps({"run": place, "place": place, "data": trained.data}))
    monkeypatch.chdir(folder)
    return out

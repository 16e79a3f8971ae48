"""What the tests of an application share: its trained model."""

from pathlib import Path

import pytest

from examples.sentiment_monitor.__main__ import main
from examples.sentiment_monitor.settings import DEFAULT

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

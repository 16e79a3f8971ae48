"""What tests of the DCGAN share."""

from pathlib import Path

import pytest
from dcgan_runs import DCGAN, FAST, SHORT

from trainer.cli import main


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a classifier, and a DCGAN that is scored in its features; both trained for some steps."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["task=cnn", *FAST, "trainer.limit_train_batches=7", "run.name=lenet"]) == 0
        # A large learning rate: after so few steps images must differ from each other.
        words = ["optimizer.lr=0.02", "run.name=gan", "task.features=run:outputs/cnn/lenet"]
        assert main([*DCGAN, *SHORT, *words]) == 0
    return folder

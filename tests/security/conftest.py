"""A finished run, of which each test changes a copy."""

import shutil
from pathlib import Path

import pytest
from foreign import PRIVATE, WORDS, Place

from trainer.cli import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(WORDS) == 0
    return directory / "outputs"


@pytest.fixture
def place(finished: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("TRAINER_CACHE", str(in_directory / "cache"))
    shutil.copytree(finished, in_directory / "outputs", symlinks=True)
    outside = in_directory / "outside"
    outside.mkdir()
    (outside / "victim").write_text(PRIVATE)
    (in_directory / "points.json").write_text("[[0.1, 0.2]]")
    return Place(in_directory, outside, in_directory / "outputs" / "spirals" / "run", in_directory / "marker")

"""Artefacts of somebody else: what a test changes in an innocent one, and how its refusal is checked."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SPIRALS_WORDS
from PIL import Image

from trainer.cli import main

WORDS = [*SPIRALS_WORDS, "run.name=run", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
PRIVATE = "private-0123456789"


@dataclass
class Place:
    """outside: what must stay as it is. run: a copy of a finished run. marker: what executed code would create."""

    directory: Path
    outside: Path
    run: Path
    marker: Path

    @property
    def victim(self) -> Path:
        """A file of the user's, elsewhere."""
        return self.outside / "victim"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return (self.run / "checkpoints" / "last").resolve()

    def configure(self, **values: Any) -> None:
        """Change nodes of the run's config.yaml."""
        file = self.run / "config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))

    def unfinished(self) -> list[str]:
        """Let the same command resume the run. Returns: it."""
        record = self.run / "run.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "status": "stopped"}))
        return WORDS

    def link(self, name: str, target: Path) -> None:
        """Put a link in the place of a file or folder of the run."""
        path = self.run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def plugin(self) -> Path:
        """A folder with a task that creates the marker when it is imported."""
        folder = self.directory / "evil"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "config.py").write_text(f"import os\nos.mknod({str(self.marker)!r})\n")
        return folder

    def recipe(self, text: str) -> list[str]:
        """A folder of recipes with one called evil. Returns: the words that choose it."""
        folder = self.directory / "recipes" / "experiment"
        folder.mkdir(parents=True)
        (folder / "evil.yaml").write_text("# @package _global_\n" + text)
        return [
            "task=cnn",
            "logger=none",
            "run.report=false",
            "trainer.accelerator=cpu",
            f"--config-dir={folder.parent}",
            "experiment=evil",
        ]

    def payload(self) -> "Payload":
        """What creates the marker when it is unpickled."""
        return Payload(str(self.marker))

    def write_manifest(self, **files: Any) -> None:
        """Let the manifest fit the files of the checkpoint, and others."""
        file = self.checkpoint / "manifest.json"
        manifest = json.loads(file.read_text())
        for name in manifest["files"]:
            content = (self.checkpoint / name).read_bytes()
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["files"].update(files)
        file.write_text(json.dumps(manifest))


def slow_jpeg(side: int, num_scans: int) -> bytes:
    """A grey progressive JPEG that is decoded in as many passes over all its pixels as it has scans of 14 bytes."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 128).save(buffer, "JPEG", progressive=True)
    innocent = buffer.getvalue()
    last_scan = innocent[innocent.rindex(b"\xff\xda") : -2]
    return innocent[:-2] + last_scan * num_scans + innocent[-2:]


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mknod, (self.marker,))


def eval_words(place: Place) -> list[str]:
    return ["eval", f"run={place.run}"]


def predict_words(place: Place) -> list[str]:
    return ["predict", f"run={place.run}", "input=points.json"]


def check_refused(
    plant: Callable[[Place], list[str]],
    expected: str,
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command exits with 2 and the expected words; nothing executes, nothing outside is read or written."""
    monkeypatch.syspath_prepend(str(place.directory))
    words = plant(place)
    before = {path: path.read_bytes() for path in place.outside.rglob("*") if path.is_file()}
    code = main(words)
    printed = "".join(capsys.readouterr())
    assert not place.marker.exists(), "code was executed"
    assert code == 2, printed
    assert expected in printed, printed
    assert "\x1b" not in printed and PRIVATE not in printed and "Traceback" not in printed
    assert {path: path.read_bytes() for path in place.outside.rglob("*") if path.is_file()} == before
    written = [path for path in place.directory.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(PRIVATE.encode() in path.read_bytes() for path in written if path.parent != place.outside)

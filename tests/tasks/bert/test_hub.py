"""An encoder from the hub's local cache: its commit is recorded, and how to pin it is said."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import pytest
from runs import only_run

from tasks.bert.weights import hub_commit
from trainer.cli import main

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def on_hub(words: Sequence[str], encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a short run on owner/tiny, which is in the hub's cache and nowhere else."""
    hub = tmp_path / "hub"
    repository = hub / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(encoder, repository / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(hub))
    given = [word for word in words if not word.startswith("model.path=")]
    return [*given, "model.path=owner/tiny", "trainer.max_steps=1", f"run.root={tmp_path / 'runs'}"]


def test_the_commit_is_recorded_and_can_be_pinned(
    on_hub: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(on_hub) == 0
    assert f"model.path=owner/tiny: the newest revision was taken; model.revision={COMMIT}" in capsys.readouterr().err
    facts = json.loads((only_run(tmp_path / "runs") / "run.json").read_text())["model"]
    assert facts["revision"] == COMMIT
    shutil.rmtree(tmp_path / "runs")
    pins = [f"model.revision={COMMIT}", f"model.sha256={facts['weights_sha256']}"]
    assert main([*on_hub, *pins]) == 0
    assert "newest revision" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs")
    assert main([*on_hub, f"model.revision={COMMIT}", f"model.sha256={'0' * 64}"]) == 2
    assert "is another file" in capsys.readouterr().err


def test_a_local_folder_has_no_commit(encoder: Path, tmp_path: Path) -> None:
    assert hub_commit(encoder) is None
    assert hub_commit(tmp_path / "snapshots" / "main") is None
    assert hub_commit(tmp_path / "snapshots" / COMMIT) == COMMIT

"""Secrets that are planted in eight places: no byte of what a run, a failed run or a job script leaves holds one."""

import json
import sys
from pathlib import Path

import pytest
import wandb
from PIL import Image

from trainer.cli import main

# Each is long and unlike all others, and stands where its name says.
SECRETS = {
    place: f"planted-{place}-{'0123456789abcdef' * 2}"
    for place in ("environment", "nested", "other-key", "data-path", "command-line", "url", "netrc", "header")
}
HOME = "home"


@pytest.fixture
def words(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command of a small run of which every key that can take a text takes a secret."""
    images = in_directory / SECRETS["data-path"]
    for number in range(16):
        path = images / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    environment = {
        "PLAIN": SECRETS["environment"],
        "NESTED": SECRETS["nested"],
        "OTHER": SECRETS["other-key"],
        "IMAGES": str(images),
        "SHELL_TOKEN": SECRETS["command-line"],
        "STORAGE": f"mysql://me:{SECRETS['url']}@127.0.0.1/study",
        "HTTPS_PROXY": f"http://me:{SECRETS['url']}@127.0.0.1:9",
        "NETRC": str(in_directory / "netrc"),
        "WANDB__EXTRA_HTTP_HEADERS": json.dumps({"X-Token": SECRETS["header"]}),
        "TRAINER_CACHE": str(in_directory / "cache"),
        # W&B keeps logs and staged files in the user's folders.
        "HOME": str(in_directory / HOME),
        **dict.fromkeys(("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"), ""),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    # A service of W&B that an earlier test has started keeps its files where HOME was then.
    wandb.teardown()
    (in_directory / HOME).mkdir()
    (in_directory / "netrc").write_text(f"machine api.wandb.ai login user password {SECRETS['netrc']}\n")
    return [
        "task=cnn",
        "data=image_folder",
        "data.path='${oc.env:IMAGES}'",
        "data.image_size=16",
        "logger=[wandb,csv]",
        "logger.wandb.mode=offline",
        "logger.wandb.notes='${oc.env: PLAIN} and ${oc.env:ABSENT,${oc.env:NESTED}} and ${logger.wandb.tags[0]}'",
        "logger.wandb.tags=['${oc.env:OTHER}']",
        "sweep=optuna",
        "sweep.storage='${oc.env:STORAGE}'",
        # As a shell that expands $SHELL_TOKEN passes it.
        f"launch.interface={SECRETS['command-line']}",
        "trainer.accelerator=cpu",
        "trainer.max_steps=2",
        "trainer.enable_progress_bar=false",
    ]


def places_of_secrets(folder: Path, text: str) -> dict[str, list[str]]:
    """Where each secret is found: in files below a folder, in the names of files, or in what was printed."""
    hits: dict[str, list[str]] = {}
    for place, secret in SECRETS.items():
        found = ["printed"] if secret in text else []
        for path in folder.rglob("*"):
            if secret in str(path.relative_to(folder)) or (path.is_file() and secret.encode() in path.read_bytes()):
                found.append(str(path.relative_to(folder)))
        if found:
            hits[place] = found
    return hits


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["trainer", *words])
    return main(words)


def test_a_run_writes_and_prints_none(
    words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(words, monkeypatch) == 0
    printed = "".join(capfd.readouterr())
    outputs = Path("outputs")
    assert list(outputs.rglob("*.wandb")) and list(outputs.rglob("run.json"))
    assert places_of_secrets(outputs, printed) == {}
    assert any(Path(HOME).rglob("*wandb*"))
    assert places_of_secrets(Path(HOME), "") == {}
    # The control: the search finds what is there.
    Path("outputs", "planted").write_bytes(b"\0" + SECRETS["header"].encode() + b"\0")
    assert places_of_secrets(outputs, SECRETS["url"]) == {"url": ["printed"], "header": ["planted"]}


def test_a_job_script_and_an_error_hold_none(
    words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run([*words, "launch=slurm", "launch.dry_run=true"], monkeypatch) == 0
    script = "".join(capfd.readouterr())
    assert "#SBATCH" in script and "${oc.env:SHELL_TOKEN}" in script
    assert run([*words, "data.label_column=absent"], monkeypatch) == 2
    error = "".join(capfd.readouterr())
    assert "data.label_column=absent" in error
    assert places_of_secrets(Path("outputs"), script + error) == {}

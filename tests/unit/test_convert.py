"""Any checkpoint -> safetensors that load without this project; what is no checkpoint of ours is never executed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from conftest import SPIRALS_WORDS
from safetensors.torch import load_file, load_model
from torch import nn

from trainer.checkpoint.weights import write_weights
from trainer.cli import main
from trainer.run.files import STATE_FILE

# The lowest accuracy counts as best, so that the best checkpoint is an early one and the last is another.
WORST_IS_BEST = ["monitor.metric=val/accuracy", "monitor.mode=min", "checkpoint.keep=3"]
WORDS = [*SPIRALS_WORDS, "run.name=run", "trainer.max_epochs=3", "trainer.enable_progress_bar=false", *WORST_IS_BEST]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(WORDS) == 0
    run = directory / "outputs" / "spirals" / "run"
    best, last = (saved(run / "checkpoints" / name) for name in ("best", "last"))
    assert any(not torch.equal(best[name], last[name]) for name in best)
    return run


def saved(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint / STATE_FILE, weights_only=True)["state_dict"]


def assert_same(file: Path, expected: dict[str, torch.Tensor]) -> None:
    actual = load_file(file)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def test_a_run_ends_with_its_best_weights(run: Path) -> None:
    assert_same(run / "model.safetensors", saved(run / "checkpoints" / "best"))


@pytest.mark.parametrize("name", ["best", "last", "step-00000016"])
def test_a_checkpoint_of_a_run(name: str, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "weights.safetensors"
    assert main(["convert", f"run={run}", f"checkpoint={name}", f"out={target}"]) == 0
    assert_same(target, saved(run / "checkpoints" / name))


@pytest.mark.parametrize("words", [[], ["checkpoint=best"], ["checkpoint=last"], ["checkpoint=step-16"]], ids=str)
def test_the_final_weights_are_never_overwritten(words: list[str], run: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main(["convert", f"run={run}", *words]) == 0
    assert (run / "model.safetensors").read_bytes() == before
    name = words[0].removeprefix("checkpoint=") if words else "best"
    name = "step-00000016" if name == "step-16" else name
    written = run / f"model-{name}.safetensors"
    assert_same(written, saved(run / "checkpoints" / name))
    written.unlink()


def test_out_over_the_final_weights_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "model.safetensors").read_bytes()
    assert main(["convert", f"run={run}", "checkpoint=last", f"out={run / 'model.safetensors'}"]) == 2
    assert "holds the final weights of a run" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before


def test_another_format_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", f"run={run}", f"out={tmp_path / 'x.pt'}"]) == 2
    assert ".safetensors" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


def test_a_checkpoint_by_its_path(run: Path, tmp_path: Path) -> None:
    for place in (run / "checkpoints" / "last", run / "checkpoints" / "last" / STATE_FILE):
        target = tmp_path / "weights.safetensors"
        assert main(["convert", f"checkpoint={place}", f"out={target}"]) == 0
        assert_same(target, saved(run / "checkpoints" / "last"))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.output = nn.Linear(3, 5, bias=False)
        self.output.weight = self.embedding.weight
        self.convolution = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)


def test_tied_weights_and_other_memory_orders_come_back(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    write_weights(model.state_dict(), tmp_path / "tied.safetensors")
    load_model(other, tmp_path / "tied.safetensors")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Evil(tmp_path / "run")}, tmp_path / "evil.ckpt")
    assert main(["convert", f"checkpoint={tmp_path / 'evil.ckpt'}", f"out={tmp_path / 'out.safetensors'}"]) == 2
    assert "would run code" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_user_errors_are_printed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no checkpoint")
    torch.save({"epoch": 1}, tmp_path / "other.ckpt")
    errors = {
        "needs run=DIR": [],
        "checkpoint=lst": [f"run={run}", "checkpoint=lst"],
        "did you mean checkpoint?": [f"run={run}", "chekpoint=last"],
        "not a run directory": [f"run={tmp_path}"],
        "no checkpoint, or one": [f"checkpoint={tmp_path / 'text'}", "out=x.safetensors"],
        "no such file": [f"checkpoint={tmp_path / 'none'}", "out=x.safetensors"],
        "holds no state_dict": [f"checkpoint={tmp_path / 'other.ckpt'}", "out=x.safetensors"],
    }
    for expected, words in errors.items():
        assert main(["convert", *words]) == 2
        assert expected in capsys.readouterr().err, expected


def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "step-00000016"
    copy.mkdir()
    for file in (run / "checkpoints" / "step-00000016").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with (copy / STATE_FILE).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.truncate()
    assert main(["convert", f"checkpoint={copy}", f"out={tmp_path / 'out.safetensors'}"]) == 2
    assert "damaged" in capsys.readouterr().err

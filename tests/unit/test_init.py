"""Starting from weights that exist: which fit, which start anew, what is refused, and what a resumption reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SPIRALS, SPIRALS_WORDS
from safetensors.torch import load_file, save_file

from trainer.checkpoint.initial import describe_weights, start_from_weights
from trainer.cli import main
from trainer.config.identity import identity_hash
from trainer.engine.build import build_data_and_module
from trainer.module import TrainingModule
from trainer.run.metrics_file import read_metrics
from trainer.verbs.prepare import Options, prepare

WORDS = [*SPIRALS_WORDS, "trainer.enable_progress_bar=false", "trainer.max_epochs=1"]
FAULTY = REPOSITORY / "tests" / "fixtures" / "faulty"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with the file of the plain network's weights and other kinds of files beside it."""
    folder = tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*WORDS, "run.name=run", "seed=7"]) == 0
    run = folder / "outputs" / "spirals" / "run"
    weights = load_file(run / "model.safetensors")
    plain = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    torch.save(plain, run / "plain.pth")
    torch.save(plain, run / "older.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": weights, "epoch": 3}, run / "lightning.ckpt")
    return run


def started(*words: str) -> tuple[TrainingModule, dict]:
    plan = prepare([*WORDS, *words], Options())
    _, module = build_data_and_module(plan.config, plan.task, plan.world)
    return module, start_from_weights(plan.config, module, torch.device("cpu"))


@pytest.mark.parametrize(
    "place",
    ["", "model.safetensors", "checkpoints/last", "checkpoints/best/state.ckpt", "plain.pth", "older.pt",
     "lightning.ckpt"],
)  # fmt: skip
def test_the_networks_hold_the_weights_of_a_run_a_checkpoint_or_a_file(place: str, source: Path) -> None:
    module, facts = started(f"init.from={source / place}", "init.strict=true")
    expected = load_file(source / "model.safetensors")
    assert facts["num_loaded"] == len(expected) == 4
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert facts["new"] == facts["unused"] == []
    assert describe_weights(facts)[0].startswith(f"weights of {facts['file']}: 4 tensors")


def test_a_layer_of_another_shape_starts_anew_and_is_named(source: Path, tmp_path: Path) -> None:
    weights = load_file(source / "model.safetensors")
    head = {"model.3.weight": torch.zeros(5, 32), "model.3.bias": torch.zeros(5), "model.9.weight": torch.zeros(1)}
    save_file(weights | head, tmp_path / "five.safetensors")
    module, facts = started(f"init.from={tmp_path / 'five.safetensors'}")
    fresh, _ = started(f"init.from={source}")
    assert torch.equal(module.state_dict()["model.0.weight"], weights["model.0.weight"])
    own = module.state_dict()["model.3.weight"]
    assert own.shape == (2, 32) and own.abs().max() > 0
    assert not torch.equal(own, fresh.state_dict()["model.3.weight"])
    assert facts["new"] == ["model.3.weight", "model.3.bias"]
    assert facts["unused"] == ["model.9.weight"]
    # The bias would fit, but belongs to weights that do not.
    save_file(weights | {"model.3.weight": torch.zeros(2, 5)}, tmp_path / "narrow.safetensors")
    assert started(f"init.from={tmp_path / 'narrow.safetensors'}")[1]["new"] == facts["new"]
    lines = describe_weights(facts)
    assert "random" in lines[1] and "model.3.weight, model.3.bias" in lines[1] and "model.9.weight" in lines[2]


# (content or change of the file, further words, what the message must contain)
BAD = {
    "nothing there": (None, [], ["no such file"]),
    "a cut safetensors": (".safetensors", [], ["damaged"]),
    "a cut file of torch's": (".pth", [], ["damaged"]),
    "a text": ("text.pt", [], ["damaged, no file of torch's, or one that would run code"]),
    "code": ("code.pt", [], ["would run code"]),
    "no weights": ("empty.pt", [], ["holds no weights"]),
    "another architecture": ("source", ["model.width=16"], ["another architecture", "3 of 4", "model.0.weight is (16"]),
    "a missing input layer": ("extra", [], ["another architecture", "2 of 4", "model.0.weight is not in the file"]),
    "strict": ("five", ["init.strict=true"], ["init.strict=true", "3 do not", "model.3.weight is (2, 32)"]),
    "another hash": ("source", [f"init.sha256={'0' * 64}"], ["init.sha256=000", "is another file", "hashes to"]),
    "a damaged checkpoint": ("checkpoint", [], ["is damaged"]),
    "a directory that is none": ("folder", [], ["no run and no checkpoint", "model.safetensors"]),
}


@pytest.fixture
def bad_file(source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    kind = request.param
    weights = load_file(source / "model.safetensors")
    path = tmp_path / f"bad{Path(kind or '').suffix or kind or ''}"
    if kind == "source":
        return source
    if kind in (".safetensors", ".pth"):
        whole = (source / ("model.safetensors" if kind == ".safetensors" else "plain.pth")).read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
    elif kind == "text.pt":
        path.write_text("no weights here")
    elif kind in ("code.pt", "empty.pt"):
        torch.save({"weights": Path("x")} if kind == "code.pt" else {"epoch": 3}, path)
    elif kind in ("extra", "five"):
        path = path.with_suffix(".safetensors")
        shape = {"model.3.weight": torch.zeros(5, 32), "model.3.bias": torch.zeros(5), "model.9.bias": torch.zeros(1)}
        renamed = {f"model.1{name[7:]}" if name.startswith("model.0.") else name: t for name, t in weights.items()}
        save_file(renamed if kind == "extra" else weights | shape, path)
    elif kind == "checkpoint":
        path = Path(shutil.copytree((source / "checkpoints" / "last").resolve(), tmp_path / "step-00000016"))
        (path / "state.ckpt").write_bytes((path / "state.ckpt").read_bytes()[:-1])
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(("bad_file", "words", "parts"), BAD.values(), ids=BAD.keys(), indirect=["bad_file"])
def test_what_cannot_be_used_is_a_user_error(
    bad_file: Path, words: list[str], parts: list[str], in_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*WORDS, f"init.from={bad_file}", *words]) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.split("\n")) <= 3 and "Traceback" not in message
    assert all(part in message for part in ["init.", *parts]), message


def test_the_identity_is_the_content_of_the_file(source: Path, tmp_path: Path) -> None:
    def of(*words: str) -> str:
        return identity_hash(prepare([*WORDS, *words], Options()).config)

    moved = tmp_path / "moved.safetensors"
    shutil.copy(source / "model.safetensors", moved)
    first = of(f"init.from={source}")
    assert of(f"init.from={moved}") == first
    assert of(f"init.from={moved}", "init.strict=true") == first
    assert of(f"init.from={source / 'plain.pth'}") != first != of()


def test_a_resumed_run_does_not_need_its_source(
    source: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = in_directory / "copy"
    shutil.copytree(source, copy)
    words = [word for word in WORDS if not word.startswith("plugins")]
    words = [f"plugins=[{SPIRALS},{FAULTY}]", *words[1:], "task.name=faulty", f"init.from={copy}"]
    words.insert(1, "task=spirals")
    assert main([*words, "run.root=whole"]) == 0
    with monkeypatch.context() as patch:
        patch.setenv("FAULT", "sigterm:0:6")
        assert main(words) == 75
    shutil.rmtree(copy)
    assert main(words) == 0
    (run,) = (in_directory / "outputs" / "faulty").iterdir()
    (whole,) = (in_directory / "whole" / "faulty").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert len(record["attempts"]) == 2
    assert record["init"]["sha256"] and record["identity"]["init"] == f"weights sha256:{record['init']['sha256']}"
    expected, found = load_file(whole / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    losses = [[line["train/loss"] for line in read_metrics(each) if "train/loss" in line] for each in (run, whole)]
    assert losses[0] == losses[1]
    # Finished, it is no longer continued, and a new one needs the file; but it can be made longer.
    assert main(words) == 2
    assert main([*words, f"run.name={run.name}", "trainer.max_steps=18", "trainer.max_epochs=2"]) == 2
    assert main([*words, f"run.name={run.name}", "trainer.max_epochs=2"]) == 0
    assert len(json.loads((run / "run.json").read_text())["continuations"]) == 1

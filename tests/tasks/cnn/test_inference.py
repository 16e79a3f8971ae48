"""A trained classifier on raw images: from the run directory alone, with the logits of eval bit for bit."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import CommandLine
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import trainer
from tasks.cnn.inference import CNNInference
from trainer.cli import main
from trainer.data.module import DataModule
from trainer.engine.build import build_trained
from trainer.errors import UserError
from trainer.launch.discover import plan_world
from trainer.module import TrainingModule
from trainer.run.stored_config import read_stored_config

CPU = torch.device("cpu")
COUNT, SIZE, EVAL_SIZE = 11, 16, 4
WORDS = [
    "task=cnn",
    "data=image_folder",
    "data.path=insects",
    f"data.image_size={SIZE}",
    "data.eval_fraction=0.5",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=1",
    "batch.global_size=22",
    f"batch.eval_size={EVAL_SIZE}",
]
MIXED = ["trainer.precision=bf16-mixed", "performance.channels_last=true"]
TRUE = ["trainer.precision=bf16-true"]


def picture(number: int, channels: int = 3, side: int = 20) -> np.ndarray:
    shape = (side, side + 4, channels) if channels > 1 else (side, side + 4)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def insects(folder: Path) -> None:
    for label, name in enumerate(("ant", "bee")):
        (folder / "insects" / name).mkdir(parents=True)
        for number in range(COUNT):
            image = picture(100 * label + number) // 2 + 100 * label
            Image.fromarray(image.astype(np.uint8)).save(folder / "insects" / name / f"{number:02d}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the images and one run per precision: plain, mixed, half (all bfloat16)."""
    folder = tmp_path_factory.mktemp("trained")
    insects(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, words in {"plain": [], "mixed": MIXED, "half": TRUE}.items():
            assert main([*WORDS, *words, f"run.name={name}"]) == 0
    return folder


def run_of(folder: Path, name: str = "plain") -> Path:
    return folder / "outputs" / "cnn" / name


def inference_of(run: Path) -> CNNInference:
    stored = read_stored_config(run)
    inference = stored.task.load_inference(stored.config, run, CPU)
    assert isinstance(inference, CNNInference)
    return inference


def built(run: Path) -> tuple[DataModule, TrainingModule, pl.Trainer]:
    """What the verb eval works with."""
    stored = read_stored_config(run)
    world = plan_world(stored.config.trainer, stored.config.launch)
    return build_trained(stored.config, stored.task, world, run)


def evaluated(folder: Path, name: str) -> tuple[Tensor, list[str]]:
    """Logits of Lightning's evaluation, and the files that they are of."""
    data, module, trainer = built(run_of(folder, name))
    logits: list[Tensor] = []
    hook = module.networks()["model"].register_forward_hook(lambda _, __, output: logits.append(output.float()))
    trainer.validate(module, datamodule=data, verbose=False)
    hook.remove()
    files = sorted(str(path) for path in (folder / "insects").rglob("*.png"))
    validation: Any = data.sets["val"]
    return torch.cat(logits), [files[row] for row in validation.rows.tolist()]


@pytest.mark.parametrize("name", ["plain", "mixed", "half"])
def test_logits_are_those_of_eval_bit_for_bit(name: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    expected, files = evaluated(trained, name)
    logits = trainer.load(run_of(trained, name), device="cpu").outputs(files)
    assert len(expected) == COUNT
    assert torch.equal(logits, expected)


def test_raw_images_of_all_kinds_are_the_same_input(trained: Path) -> None:
    model = trainer.load(run_of(trained), device="cpu")
    pixels = np.stack([picture(number) for number in range(5)])
    expected = model.outputs(pixels, batch_size=2)
    assert expected.shape == (5, 2)
    for alike in (list(pixels), [Image.fromarray(image) for image in pixels], iter(pixels)):
        assert torch.equal(model.outputs(alike, batch_size=2), expected)
    for one in (pixels[3], Image.fromarray(pixels[3]), [pixels[3]]):
        assert torch.equal(model.outputs(one), model.outputs([pixels[3]]))
    file = min((trained / "insects").rglob("*.png"))
    assert model(file) == model(str(file)) == model([Image.open(file)]) == model(file.read_bytes())


def test_results_are_softmax_by_class_name(trained: Path) -> None:
    inference = inference_of(run_of(trained))
    images = [picture(number) for number in range(5)]
    logits = inference.outputs(images).double()
    for result, row in zip(inference(images), logits.softmax(1).tolist(), strict=True):
        assert list(result["probabilities"]) == ["ant", "bee"]
        assert list(result["probabilities"].values()) == pytest.approx(row, abs=1e-6)
        assert result["label"] == ["ant", "bee"][int(row[1] > row[0])]
        assert result["probability"] == max(result["probabilities"].values())
        json.dumps(result)
    assert inference([]) == []


def test_example_inputs_fit_the_network(trained: Path) -> None:
    inference = inference_of(run_of(trained))
    example = inference.example_inputs()
    assert inference.network(**example.tensors).shape == (2, 2)
    assert example.dynamic == {"images": {0: "batch"}}


def test_a_bad_input_is_named(trained: Path) -> None:
    """By its position among all inputs, not within its batch."""
    for size in (None, 1):
        with pytest.raises(UserError, match="input 1: has 1 channel, the training images have 3 channels"):
            inference_of(run_of(trained))([picture(0), picture(1, channels=1)], batch_size=size)


def test_damaged_or_missing_weights_are_user_errors(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_of(trained), tmp_path / "run", symlinks=True))
    weights = load_file(run / "model.safetensors")
    del weights["model.head.bias"]
    save_file(weights, run / "model.safetensors")
    with pytest.raises(UserError, match="does not fit the configuration"):
        inference_of(run)
    (run / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        inference_of(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model.safetensors yet"):
        inference_of(run)


# ---- the verb


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of images as people have them; only the last three cannot be used."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(picture(number)).save(folder / f"plain{number}.png")
    Image.fromarray(picture(7)).convert("CMYK").save(folder / "cmyk.jpg")
    frames = [Image.fromarray(picture(number)) for number in (8, 9)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(10)).save(folder / "turned.png", exif=exif)
    (folder / "notes.txt").write_text("no image")
    Image.fromarray(picture(11, channels=1)).save(folder / "x-grey.png")
    Image.fromarray(picture(12, channels=1).astype(np.uint16) * 257).save(folder / "y-deep.png")
    (folder / "z-broken.png").write_bytes((folder / "plain0.png").read_bytes()[:300])
    return folder


USABLE = ["cmyk.jpg", "moving.gif", *(f"plain{number}.png" for number in range(6)), "turned.png"]
UNUSABLE = ["x-grey.png", "y-deep.png", "z-broken.png"]


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open() as file:
        return list(csv.DictReader(file))


def test_odd_images_are_converted_as_in_training_or_refused_by_name(
    trained: Path, odd: Path, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", f"run={run_of(trained)}", f"input={odd}"]
    assert main([*words, "output=out.csv"]) == 2
    error = capsys.readouterr().err
    assert "x-grey.png: has 1 channel, the training images have 3 channels" in error
    assert "on_bad_row=skip leaves such images out" in error
    assert list(in_directory.glob("*out.csv*")) == []

    assert main([*words, "output=out.csv", "on_bad_row=skip"]) == 0
    error = capsys.readouterr().err
    assert "12 images -> out.csv" in error
    assert "3 of them cannot be used and are left out: x-grey.png" in error
    assert "1 other file is not read" in error
    assert main([*words, "output=out.jsonl", "on_bad_row=null"]) == 0
    rows = rows_of(in_directory / "out.jsonl")
    assert [row["file"] for row in rows] == [*USABLE, *UNUSABLE]
    assert all(list(row.values())[1:] == [None] * 4 for row in rows[-3:])
    assert [row["file"] for row in rows_of(in_directory / "out.csv")] == USABLE

    inference = inference_of(run_of(trained))
    upright = {name: Image.open(odd / name).convert("RGB") for name in USABLE}
    upright["turned.png"] = upright["turned.png"].rotate(-90, expand=True)
    expected = inference([np.asarray(image) for image in upright.values()])
    for row, result in zip(rows, expected, strict=False):
        assert row["predicted_label"] == result["label"]
        assert row["probability_bee"] == pytest.approx(result["probabilities"]["bee"], abs=2e-6)


def test_a_run_copied_alone_predicts_the_same_on_one_rank_and_two(
    trained: Path, odd: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> None:
    """Neither the training data nor the cache is there."""
    words = [f"input={odd}", "on_bad_row=skip"]
    assert main(["predict", f"run={run_of(trained)}", *words, "output=first.jsonl"]) == 0
    moved = Path(shutil.copytree(run_of(trained), in_directory / "moved", symlinks=True))
    monkeypatch.setenv("TRAINER_CACHE", str(in_directory / "no-cache"))
    assert not (in_directory / "insects").exists()
    assert main(["predict", f"run={moved}", *words]) == 0
    assert main(["predict", f"run={moved}", *words, "output=again.jsonl"]) == 0
    first = (in_directory / "first.jsonl").read_bytes()
    assert (in_directory / "again.jsonl").read_bytes() == first
    assert [row["file"] for row in rows_of(moved / "predictions.csv")] == USABLE
    done = command_line("predict", f"run={moved}", *words, "output=two.jsonl", "trainer.devices=2", timeout_s=400)
    assert done.returncode == 0, done.stderr
    assert (in_directory / "two.jsonl").read_bytes() == first
    assert not (in_directory / "no-cache").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=gone", "output=out.csv"], "input=gone: no such file or directory"),
        (["input=empty", "output=out.csv"], "no image in this directory"),
        (["input=image.png", "output=out.txt"], "not a format that is written; possible: .csv, .jsonl"),
        (["input=image.png", "output=none/out.csv"], "no such directory: none"),
        (["input=image.csv", "output=image.csv"], "this is the input"),
        (["output=out.csv"], "input"),
        (["input=image.png", "on_bad_row=ignore"], "on_bad_row=ignore"),
    ],
)
def test_wrong_arguments_are_refused(
    words: list[str], message: str, trained: Path, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_directory / "empty").mkdir()
    for name in ("image.png", "image.csv"):
        Image.fromarray(picture(0)).save(in_directory / name, "PNG")
    assert main(["predict", f"run={run_of(trained)}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (in_directory / "out.csv").exists()


def test_eval_uses_the_classes_and_normalisation_of_the_run(
    trained: Path, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A renamed class is refused; it used to be counted under the number of another one."""
    run = Path(shutil.copytree(run_of(trained), in_directory / "run", symlinks=True))
    spec = json.loads((run / "inputs.json").read_text())
    shutil.copytree(trained / "insects", in_directory / "insects")
    assert main(["eval", f"run={run}"]) == 0
    (in_directory / "insects" / "ant").rename(in_directory / "insects" / "wasp")
    assert main(["eval", f"run={run}"]) == 2
    assert "has the label wasp, which is not one of the classes" in capsys.readouterr().err
    (in_directory / "insects" / "wasp").rename(in_directory / "insects" / "ant")
    for path in (in_directory / "insects" / "ant").iterdir():
        Image.new("RGB", (20, 20), (255, 255, 255)).save(path)
    data, module, _ = built(run)
    transform: Any = module.transform
    assert transform.mean.flatten().tolist() == pytest.approx(spec["mean"], rel=1e-6)
    assert data.spec.mean == spec["mean"]  # pyright: ignore[reportAttributeAccessIssue]

"""Whole runs: grids, scores with their protocol, generation, and what a user may get wrong."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CommandLine
from PIL import Image
from safetensors.torch import load_model
from torchmetrics.image.fid import _compute_fid

from tasks.dcgan.features import build_features, load_classifier
from tasks.dcgan.module import DCGANModule
from tasks.dcgan.samples import CollapseWarning, over_time, save_grid
from trainer.cli import main
from trainer.run.stored_config import read_stored_config

FAST = ["logger=none", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
DCGAN = ["task=dcgan", *FAST, "model.width=8", "model.latent_size=16", "trainer.max_epochs=1"]
SHORT = [
    "trainer.check_val_every_n_epoch=1",
    "task.sample_every_n_steps=10",
    "task.num_samples=9",
    "task.num_scored=201",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a classifier of one epoch and a DCGAN of one epoch that is scored by it."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["task=cnn", *FAST, "trainer.max_epochs=1", "run.name=lenet"]) == 0
        assert main([*DCGAN, *SHORT, "run.name=gan", "task.features=run:outputs/cnn/lenet"]) == 0
    return folder


def run_dir(folder: Path) -> Path:
    return folder / "outputs" / "dcgan" / "gan"


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, DCGANModule]:
    monkeypatch.chdir(folder)
    stored = read_stored_config(run_dir(folder))
    config, task = stored.config, stored.task
    data = task.build_data(config)
    data.load(torch.device("cpu"))
    module = task.build_module(config, data)
    load_model(module, str(run_dir(folder) / "model.safetensors"))
    assert isinstance(module, DCGANModule)
    return data, module.eval()


def test_grids_are_written_at_the_cadence_and_over_time(runs: Path) -> None:
    samples = run_dir(runs) / "samples"
    grids = sorted(path.name for path in samples.glob("step-*.png"))
    assert grids == [f"step-{step:08d}.png" for step in (0, 10, 20, 29)]
    assert Image.open(samples / grids[0]).size == (3 * 32 + 4, 3 * 32 + 4)
    assert Image.open(samples / "strip.png").size == (4 * 32 + 6, 8 * 32 + 14)
    animation = Image.open(samples / "animation.gif")
    assert animation.n_frames == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_scores_are_those_of_the_formulas_and_name_their_protocol(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = map(json.loads, (run_dir(runs) / "scores.jsonl").read_text().splitlines())
    assert line["network"] == "run:outputs/cnn/lenet"
    assert line["num_images"] == 201
    assert line["num_features"] == 84
    assert line["preprocessing"] == "8 bits, the run's own normalisation"
    assert len(line["sha256"]) == 64

    data, module = trained(runs, monkeypatch)
    batch = data.sets["val"].gather(np.arange(201), 201, 0)
    lenet: Any = load_classifier(runs / "outputs" / "cnn" / "lenet")

    def features(images: torch.Tensor) -> torch.Tensor:
        maps = (images / 255 - lenet.transform.mean) / lenet.transform.std
        for conv in (lenet.model.conv1, lenet.model.conv2):
            maps = torch.max_pool2d(conv(maps).relu(), 2)
        return lenet.model.hidden2(lenet.model.hidden1(maps.flatten(1)).relu()).relu().double()

    real, fake = features(batch.images), features(module.sample(batch.noise))
    expected = _compute_fid(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov()).item()
    assert line["frechet_distance"] == pytest.approx(expected, rel=1e-3)


def test_two_ranks_give_the_same_scores(runs: Path, command_line: CommandLine) -> None:
    done = command_line("eval", f"run={run_dir(runs)}", "trainer.devices=2", cwd=runs)
    assert done.returncode == 0, done.stderr
    scores = json.loads((run_dir(runs) / "eval.json").read_text())
    (line,) = map(json.loads, (run_dir(runs) / "scores.jsonl").read_text().splitlines())
    for name in ("frechet_distance", "kernel_distance"):
        assert scores[f"val/{name}"] == pytest.approx(line[name], rel=1e-3, abs=1e-6)


def test_generated_images_depend_on_the_seed_alone(
    runs: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(*words: str) -> None:
        assert main(["predict", f"run={run_dir(runs)}", "n=5", *words]) == 0

    monkeypatch.chdir(runs)
    generate()
    folder = run_dir(runs) / "samples" / "generated-seed0-n5"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(first) == [*(f"{number:06d}.png" for number in range(5)), "grid.png"]
    assert len(set(first.values())) == 6
    for path in folder.iterdir():
        path.unlink()
    done = command_line("predict", f"run={run_dir(runs)}", "n=5", "trainer.devices=2", cwd=runs)
    assert done.returncode == 0, done.stderr
    for name in first:
        pixels, again = (np.asarray(Image.open(file), np.int16) for file in (io.BytesIO(first[name]), folder / name))
        assert np.abs(pixels - again).max() <= 1  # another batch may round another way
    generate("seed=1")
    other = run_dir(runs) / "samples" / "generated-seed1-n5" / "000000.png"
    assert other.read_bytes() != first["000000.png"]


def test_a_walk_is_a_row_of_the_grid(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    assert main(["predict", f"run={run_dir(runs)}", "n=12", "interpolate=6"]) == 0
    folder = run_dir(runs) / "samples" / "walk6-seed0-n12"
    assert len(list(folder.glob("0*.png"))) == 12
    assert Image.open(folder / "grid.png").size == (6 * 34 - 2, 2 * 34 - 2)


def test_collapse_is_told_once_and_only_when_it_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    class Step:
        global_step, is_global_zero = 0, True

    class Batch:
        micro_batches = [type("Micro", (), {"num_valid": 10})]

    watch, trainer = CollapseWarning(5), Step()

    def steps(count: int, real: float, fake: float) -> str:
        for _ in range(count):
            trainer.global_step += 1
            outputs = {"d_real": torch.tensor(10 * real), "d_fake_before": torch.tensor(10 * fake)}
            watch.on_train_batch_end(trainer, None, outputs, Batch(), 0)  # pyright: ignore[reportArgumentType]
        return capsys.readouterr().err

    assert steps(10, 1.0, 0.0) == ""
    assert steps(5, 0.7, 0.3) == ""
    assert "D(x)=1.000 and D(G(z))=0.000" in steps(15, 1.0, 0.0)
    assert steps(50, 1.0, 0.0) == ""
    assert steps(5, 0.5, 0.5) == ""
    assert "learns no more" in steps(15, 0.001, 0.002)


def test_a_generator_of_one_image_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """A rate that barely moves: the untrained generator's images hardly differ."""
    monkeypatch.chdir(tmp_path)
    assert main([*DCGAN, *SHORT, "optimizer.lr=1e-9", "task.sample_every_n_steps=5"]) == 0
    assert "samples are almost one image" in capfd.readouterr().err


def test_strip_takes_first_and_last_and_at_most_ten(tmp_path: Path) -> None:
    for step in range(14):
        images = torch.full((4, 3, 32, 32), step * 10, dtype=torch.uint8)
        save_grid(images, tmp_path / f"step-{step:08d}.png")
    over_time(tmp_path, 32)
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert strip.shape == (4 * 34 - 2, 10 * 34 - 2, 3)
    assert (strip[0, 0, 0], strip[0, -1, 0]) == (0, 130)


# ---- what a user may get wrong: exit code 2 and the reason


def picture(path: Path, size: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (size, size, len(mode)), dtype=np.uint8)
    Image.fromarray(pixels.squeeze(), mode).save(path)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*DCGAN, *words]) == 2
    return capsys.readouterr().err


@pytest.fixture
def folder(in_directory: Path) -> Path:
    for number in range(12):
        picture(in_directory / "faces" / f"{number:02d}.png", 40)
    return in_directory / "faces"


FOLDER = ["data=image_folder", "data.path=faces", "data.image_size=32", "batch.global_size=4"]


def test_images_smaller_than_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "tiny.png", 20)
    error = refusal(capsys, *FOLDER)
    assert "1 of 13 images cannot be used" in error
    assert "tiny.png" in error
    assert "20x20 is smaller than data.image_size=32" in error


def test_mixed_channels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "grey.png", 40, "L")
    error = refusal(capsys, *FOLDER)
    assert "grey.png" in error
    assert "data.channels=1 or data.channels=3 converts all" in error


def test_a_corrupt_file_is_named_and_refused_or_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:300])
    error = refusal(capsys, *FOLDER)
    assert "1 of 13 images cannot be used" in error
    assert "broken.png" in error
    assert main([*DCGAN, *SHORT, *FOLDER, "data.on_corrupt=skip", "run.name=skipping"]) == 0
    facts = json.loads((folder.parent / "outputs/dcgan/skipping/run.json").read_text())["data"]
    assert facts["train"].startswith("12 images")
    assert "broken.png" in facts["notes"][0]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["data.image_size=48"], "the networks are for 32 and 64 pixels"),
        (["task.loss=hinge", "task.label_smoothing=0.1"], "hinge has no labels"),
        (["task.loss=wasserstein"], "possible: hinge, non_saturating, saturating"),
        (["task.features=inception"], "possible: pixels, run:DIRECTORY"),
        (["task.features=run:outputs/cnn/none"], "no finished run: no config.yaml and no model.safetensors"),
        (["task.features=torchscript:none.pt"], "none.pt is no file"),
        (["task.features_sha256=ab"], "belongs to task.features=torchscript:FILE"),
    ],
    ids=str,
)
def test_values_that_cannot_be(
    words: list[str], reason: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refusal(capsys, *words)


def test_images_of_a_size_without_a_network(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        picture(in_directory / "faces" / f"{number}.png", 40)
    error = refusal(capsys, *FOLDER[:2], "data.image_size=null", "data.resize=stretch", "batch.global_size=4")
    assert "the images are 40x40; the networks need data.image_size=32 or data.image_size=64" in error


def test_a_classifier_of_another_number_of_channels(
    runs: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(capsys, *FOLDER, f"task.features=run:{runs}/outputs/cnn/lenet")
    assert "trained on 1 channel(s), these images have 3" in error
    assert "data.channels=1 converts them" in error


def test_a_run_that_is_no_classifier(
    runs: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    assert "a run of task=dcgan has no features" in refusal(capsys, f"task.features=run:{run_dir(runs)}")


class Flat(torch.nn.Module):
    """Features by a fixed projection; takes RGB only."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3 * 32 * 32, columns))

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = images.float().reshape(images.shape[0], -1) @ self.weight
        return features if return_features else features.softmax(dim=1)


def scripted(path: Path, columns: int) -> Path:
    torch.jit.script(Flat(columns)).save(str(path))
    return path


def test_a_torchscript_network_must_be_the_one_meant(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(in_directory / "net.pt", 5)
    error = refusal(capsys, "task.features=torchscript:net.pt")
    assert "task.features_sha256=null: the file's SHA-256 is " in error
    sha256 = error.partition("SHA-256 is ")[2].partition(";")[0]
    words = [*DCGAN, *SHORT, "task.features=torchscript:net.pt", f"task.features_sha256={sha256}"]
    assert main(words) == 0
    (scores,) = in_directory.glob("outputs/dcgan/*/scores.jsonl")
    line = json.loads(scores.read_text())
    assert (line["sha256"], line["num_features"]) == (sha256, 5)
    assert line["preprocessing"] == "8-bit RGB, grey repeated as RGB, all else inside the file"


def test_a_torchscript_network_is_asked_for_features_in_rgb(tmp_path: Path) -> None:
    network = build_features(f"torchscript:{scripted(tmp_path / 'net.pt', 5)}", (1, 32, 32))
    images = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8)
    weight = torch.jit.load(str(tmp_path / "net.pt")).weight
    expected = images.float().expand(3, 3, 32, 32).reshape(3, -1) @ weight
    torch.testing.assert_close(network(images), expected)


def test_a_torchscript_network_that_does_not_fit(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripted(in_directory / "net.pt", 5)
    sha256 = refusal(capsys, "task.features=torchscript:net.pt").partition("SHA-256 is ")[2].partition(";")[0]
    error = refusal(capsys, "task.features=torchscript:net.pt", f"task.features_sha256={sha256}", "data.image_size=64")
    assert "does not take 8-bit images of 1x64x64" in error


def test_images_of_another_size_are_resized_for_a_classifier(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    network = build_features("run:outputs/cnn/lenet", (1, 64, 64))
    assert network.preprocessing.startswith("8 bits, resized to 32x32 (bilinear, antialias)")
    small = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    enlarged = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert network(enlarged).shape == (2, 84)

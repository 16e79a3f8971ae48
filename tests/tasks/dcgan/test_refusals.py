"""User errors of the DCGAN: exit code 2 and the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dcgan_runs import DCGAN, SHORT, run_dir
from PIL import Image

from tasks.dcgan.features import build_features
from trainer.cli import main


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
        (["task.features=run:outputs/cnn/none"], "no finished run: it has no config.yaml and no inputs.json"),
        (["task.features=torchscript:none.pt"], "none.pt is not a file"),
        (["task.features_sha256=ab"], "belongs to task.features=torchscript:FILE"),
    ],
    ids=str,
)
def test_invalid_values_are_refused(
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
    assert "trained on 1 channel, these images have 3" in error
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
    assert "does not accept 8-bit images of 1x64x64" in error

"""What a run keeps of its images: form, classes, normalisation; and raw images converted by it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets.config
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from trainer.config.schema import Config
from trainer.data.images.config import IMAGE_DATAS, ImageDataConfig
from trainer.data.images.decode import ImageForm, Unusable
from trainer.data.images.input_spec import ImageInputSpec
from trainer.data.images.module import ImageDataModule
from trainer.data.images.raw import find_images, read_image
from trainer.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]
FORM = ImageForm(3, 8, 8, "stretch", None, 3)
SPEC = ImageInputSpec(FORM, ["ant", "bee"], [0.1, 1 / 3, 0.3], [0.2, 2 / 3, 0.4])


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")


def insects(folder: Path, *names: str, value: int = 0) -> Path:
    """Five images of 20x20 per class, each of one colour."""
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for image in range(5):
            colour = (100 * number + image + value, 7, 7)
            Image.new("RGB", (20, 20), colour).save(folder / name / f"{image}.png")
    return folder


def data_module(path: Path, **changes: Any) -> ImageDataModule[Any]:
    values = yaml.safe_load((ROOT / "conf" / "data" / "image_folder.yaml").read_text())
    data = cast(
        ImageDataConfig, IMAGE_DATAS["image_folder"](**{**values, "path": str(path), "image_size": 8, **changes})
    )
    performance = SimpleNamespace(data_on_device=True, channels_last=False)
    return ImageDataModule(cast(Config[Any, Any, Any], SimpleNamespace(data=data, seed=0, performance=performance)))


def loaded(path: Path, **changes: Any) -> ImageDataModule[Any]:
    module = data_module(path, **changes)
    module.load(torch.device("cpu"))
    return module


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    for spec in (SPEC, replace(SPEC, form=replace(FORM, source_size=(9, 7), source_channels=None))):
        spec.write(tmp_path)
        assert ImageInputSpec.read(tmp_path) == spec


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no inputs.json"),
        ('{"form": {"chan', "inputs.json is damaged"),
        ('{"tokenizer": "a"}', "inputs.json is damaged"),
        ("short mean", "mean and std do not fit the channels"),
    ],
)
def test_a_missing_or_damaged_spec_is_a_user_error(tmp_path: Path, content: str | None, message: str) -> None:
    SPEC.write(tmp_path)
    file = tmp_path / "inputs.json"
    if content is None:
        file.unlink()
    elif content == "short mean":
        file.write_text(json.dumps({**json.loads(file.read_text()), "mean": [0.1]}))
    else:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        ImageInputSpec.read(tmp_path)


def test_a_run_keeps_its_form_and_normalisation_on_changed_data(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    first = loaded(insects(tmp_path / "old", "ant", "bee"))
    first.write_input_spec(run)
    other = insects(tmp_path / "new", "ant", "bee", value=90)
    again = data_module(other, channels=1)
    again.read_input_spec(run)
    with pytest.raises(ConfigError, match=r"data.channels=1: the run was trained with 3"):
        again.load(torch.device("cpu"))
    again = data_module(other)
    again.read_input_spec(run)
    again.load(torch.device("cpu"))
    assert again.spec == first.spec
    assert loaded(other).spec.mean != first.spec.mean


def test_labels_are_matched_by_class_name(tmp_path: Path) -> None:
    """A folder that sorts before the others moves every number by one."""
    run = tmp_path / "run"
    run.mkdir()
    loaded(insects(tmp_path / "old", "bee", "cat", "dog")).write_input_spec(run)
    fewer = insects(tmp_path / "new", "cat", "dog")
    module = data_module(fewer)
    module.read_input_spec(run)
    module.load(torch.device("cpu"))
    train: Any = module.sets["train"]
    assert set(train.labels.tolist()) == {1, 2}
    insects(fewer, "ant")
    module = data_module(fewer)
    module.read_input_spec(run)
    with pytest.raises(UserError, match="has the label ant, which is not one of the classes") as caught:
        module.load(torch.device("cpu"))
    assert caught.value.lines[-1] == "the 3 classes are bee, cat, dog"


def test_the_fingerprint_is_of_pixels_labels_and_splits_and_not_of_the_path(tmp_path: Path) -> None:
    base = loaded(insects(tmp_path / "a", "ant", "bee")).fingerprint()
    assert base is not None
    assert loaded(insects(tmp_path / "b", "ant", "bee")).fingerprint() == base
    others = {
        loaded(insects(tmp_path / "pixels", "ant", "bee", value=1)).fingerprint(),
        loaded(insects(tmp_path / "names", "ant", "wasp")).fingerprint(),
        loaded(tmp_path / "a", eval_fraction=0.3).fingerprint(),
    }
    (tmp_path / "b" / "bee" / "0.png").rename(tmp_path / "b" / "ant" / "9.png")
    others.add(loaded(tmp_path / "b").fingerprint())
    assert len(others | {base}) == 5


def test_a_task_without_labels_ignores_the_names_of_classes(tmp_path: Path) -> None:
    class Unlabelled(ImageDataModule[Any]):
        uses_labels = False

    prints = set()
    for names in (("ant", "bee"), ("ant", "wasp")):
        module = Unlabelled(data_module(insects(tmp_path / names[1], *names)).config)
        module.load(torch.device("cpu"))
        assert module.spec.class_names == []
        prints.add(module.fingerprint())
    assert len(prints) == 1


def test_raw_images_are_converted_alike(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    expected = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    for value in (pixels, image, stream.getvalue(), tmp_path / "image.png", str(tmp_path / "image.png")):
        np.testing.assert_array_equal(read_image(value, FORM), expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros((8, 8), np.uint8), "has 1 channel, the training images have 3 channels"),
        (np.zeros((8, 8, 3), np.float64), "an array of float64 and shape 8x8x3 is no image"),
        (7, "a value of type int is no image"),
        (b"no image", "not an image"),
        ("gone.png", "No such file"),
    ],
)
def test_raw_images_that_cannot_be_used(value: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_image(value, FORM)


def test_images_of_a_folder_are_sorted_and_other_files_are_counted(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "a.webp", "notes.txt", ".hidden.png", ".cache/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert (found.names, found.num_other) == (["a.webp", "b/10.jpg", "b/2.PNG"], 1)
    assert find_images(tmp_path / "notes.txt").path(0) == tmp_path / "notes.txt"
    for place, message in [("none", "no such file or directory"), (".cache/empty", "no image in this directory")]:
        (tmp_path / ".cache" / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            find_images(tmp_path / place)

"""Image sets from the embedded digits and from local copies: splits, labels, statistics, errors."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import datasets
import datasets.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import trainer.config.compose  # noqa: F401 - registers the interpolations of conf/
from trainer.config.schema import Config
from trainer.data.hold_out import hold_out
from trainer.data.images.batches import ImageSet
from trainer.data.images.config import IMAGE_DATAS, ImageDataConfig, image_problems
from trainer.data.images.module import ImageDataModule
from trainer.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")


def data_config(name: str, **changes: Any) -> ImageDataConfig:
    values = OmegaConf.merge(OmegaConf.load(ROOT / "conf" / "data" / f"{name}.yaml"), changes)
    resolved = cast(dict[str, Any], OmegaConf.to_container(values, resolve=True))
    return cast(ImageDataConfig, IMAGE_DATAS[name](**resolved))


def loaded(name: str, seed: int = 0, **changes: Any) -> ImageDataModule[Any]:
    performance = SimpleNamespace(data_on_device=True, channels_last=False)
    config = SimpleNamespace(data=data_config(name, **changes), seed=seed, performance=performance)
    module = ImageDataModule(cast(Config[Any, Any, ImageDataConfig], config))
    module.load(torch.device("cpu"))
    return module


def image_set(module: ImageDataModule[Any], name: str) -> ImageSet:
    return cast(ImageSet, module.sets[name])


def png(value: int, mode: str = "RGB", size: int = 6) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.new(mode, (size, size), value if mode == "L" else (value, 0, 0)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def write(path: Path, images: list[dict[str, Any]], **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict({"image": images, **columns})
    table.cast_column("image", datasets.Image(decode=False)).to_parquet(path)


def test_every_data_file_fits_its_schema() -> None:
    for name in IMAGE_DATAS:
        assert data_config(name).name == name


def test_digits() -> None:
    module = loaded("digits")
    train, val = image_set(module, "train"), image_set(module, "val")
    assert (len(train), len(val), module.spec.form.shape) == (1438, 359, (1, 32, 32))
    assert not set(train.rows.tolist()) & set(val.rows.tolist())
    assert module.spec.class_names == [str(digit) for digit in range(10)]
    assert "held out" in str(module.describe()["val"])
    pixels = train.images[train.rows].double() / 255
    assert module.spec.mean == pytest.approx([pixels.mean().item()], rel=1e-9)
    assert module.spec.std == pytest.approx([pixels.std(correction=0).item()], rel=1e-9)


def test_digits_in_their_own_size_have_17_levels() -> None:
    module = loaded("digits", image_size=None)
    assert module.spec.form.shape == (1, 8, 8)
    assert len(image_set(module, "train").images.unique()) == 17


def test_held_out_images_do_not_depend_on_the_seed() -> None:
    rows = [image_set(loaded("digits", seed=seed), "val").rows for seed in (0, 1)]
    assert torch.equal(*rows)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 10, 997])
def test_hold_out_takes_the_same_share_of_each_class(count: int, fraction: float) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 2 * count)
    rows = np.arange(0, 2 * count, 2)
    kept, held_out = hold_out(rows, labels, fraction)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held_out])), rows)
    assert len(held_out) == min(max(1, round(count * fraction)), count - 1)
    for label in range(3):
        expected = (labels[rows] == label).sum() * len(held_out) / count
        assert abs((labels[held_out] == label).sum() - expected) <= 1


def test_test_split_evaluates_where_it_is_the_only_one(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", [png(i) for i in range(6)], label=[0, 1] * 3)
    write(tmp_path / "set" / "test.parquet", [png(i) for i in range(4)], label=[0, 1] * 2)
    module = loaded("hub", path=str(tmp_path / "set"), image_size=None, resize="stretch")
    assert {name: len(dataset) for name, dataset in module.sets.items()} == {"train": 6, "val": 4}
    assert "test split" in str(module.describe()["val"])


def test_three_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    for split, count in [("train", 6), ("validation", 4), ("test", 2)]:
        write(tmp_path / "set" / f"{split}.parquet", [png(i) for i in range(count)], label=[0, 1] * (count // 2))
    module = loaded("hub", path=str(tmp_path / "set"), image_size=None, resize="stretch")
    assert {name: len(dataset) for name, dataset in module.sets.items()} == {"train": 6, "val": 4, "test": 2}


def test_folder_a_class(tmp_path: Path) -> None:
    for number, name in enumerate(["ant", "bee"]):
        (tmp_path / "insects" / name).mkdir(parents=True)
        for image in range(5):
            Image.new("RGB", (70, 80), (100 * number + image, 0, 0)).save(tmp_path / "insects" / name / f"{image}.png")
    module = loaded("image_folder", path=str(tmp_path / "insects"))
    assert module.spec.class_names == ["ant", "bee"]
    assert module.spec.form.shape == (3, 64, 64)
    train = image_set(module, "train")
    batch = train.gather(np.arange(len(train)), len(train), 0)
    assert (batch.images[:, 0, 0, 0] // 100).tolist() == batch.labels.tolist()


def test_images_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(i) for i in range(10)])
    module = loaded("hub", path=str(tmp_path / "train.parquet"), image_size=None, resize="stretch")
    assert module.spec.class_names == []
    assert image_set(module, "train").labels.unique().tolist() == [-1]


def test_classes_are_discovered_where_they_are_not_declared(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", [png(i) for i in range(4)], label=["dog", "cat", "dog", "cat"])
    write(tmp_path / "set" / "test.parquet", [png(9)], label=["dog"])
    module = loaded("hub", path=str(tmp_path / "set"), image_size=None, resize="stretch")
    assert module.spec.class_names == ["cat", "dog"]
    assert image_set(module, "train").labels.tolist() == [1, 0, 1, 0]
    assert image_set(module, "val").labels.tolist() == [1]


def test_a_split_without_labels_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", [png(i) for i in range(10)], label=[0, 1] * 5)
    write(tmp_path / "set" / "test.parquet", [png(9)], label=[-1])
    module = loaded("hub", path=str(tmp_path / "set"), image_size=None, resize="stretch")
    assert set(module.sets) == {"train", "val"}
    assert "the test split has no labels" in str(module.describe()["notes"])


def test_statistics_are_of_the_training_images_only(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", [png(50), png(100)], label=[0, 1])
    write(tmp_path / "set" / "test.parquet", [png(255)], label=[0])
    module = loaded("hub", path=str(tmp_path / "set"), image_size=None, resize="stretch")
    assert module.spec.mean == pytest.approx([75 / 255, 0, 0])
    assert module.spec.std == pytest.approx([25 / 255, 1 / 255, 1 / 255])  # no contrast counts as one grey level


def broken_set(path: Path) -> Path:
    images = [png(0), {"bytes": b"broken", "path": None}, *(png(i) for i in range(2, 10))]
    write(path / "train.parquet", images, label=list(range(10)))
    return path


def test_corrupt_images_are_refused_by_count_and_name(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        loaded("hub", path=str(broken_set(tmp_path / "set")), image_size=None, resize="stretch")
    count, example, advice = caught.value.lines
    assert "1 of 10 images cannot be used" in count
    assert example == "row 1: not an image"
    assert advice == "data.on_corrupt=skip leaves them out"


def test_corrupt_images_are_skipped_by_choice(tmp_path: Path) -> None:
    path = str(broken_set(tmp_path / "set"))
    module = loaded("hub", path=path, image_size=None, resize="stretch", on_corrupt="skip", eval_fraction=0.3)
    labels = torch.cat([image_set(module, name).labels for name in ("train", "val")])
    assert sorted(labels.tolist()) == [0, *range(2, 10)]
    assert "1 of 10 images cannot be used and are left out: row 1" in str(module.describe()["notes"])


def test_labels_beyond_the_declared_classes(tmp_path: Path) -> None:
    declared = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": [png(0), png(1)], "label": [0, 1]}, features=declared).data.table
    table = table.set_column(1, table.schema.field(1), pa.array([0, 7], pa.int64()))
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(
        UserError, match=r"data\.label_column=label: row 1 of the train split has the label 7"
    ) as caught:
        loaded("hub", path=str(tmp_path / "train.parquet"), image_size=None, resize="stretch")
    assert caught.value.lines[-1] == "the 2 classes are a, b"


def test_labels_unknown_to_the_training_split(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", [png(0), png(1)], label=[0, 1])
    write(tmp_path / "set" / "test.parquet", [png(0), png(1)], label=[1, 7])
    with pytest.raises(UserError, match=r"row 1 of the test split has the label 7, which is not one of") as caught:
        loaded("hub", path=str(tmp_path / "set"), image_size=None, resize="stretch")
    assert caught.value.lines[-1] == "the 2 classes are 0, 1"


@pytest.mark.parametrize(("kind", "typed", "meant"), [("image", "imge", "image"), ("label", "labels", "label")])
def test_a_wrong_column_names_the_right_one(tmp_path: Path, kind: str, typed: str, meant: str) -> None:
    write(tmp_path / "train.parquet", [png(0), png(1)], label=[0, 1])
    changes: dict[str, Any] = {f"{kind}_column": typed}
    with pytest.raises(UserError, match=f"data.{kind}_column={typed}: .* did you mean {meant}"):
        loaded("hub", path=str(tmp_path / "train.parquet"), **changes)


def test_two_label_columns_need_a_choice(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"image": [png(0), png(1)], "fine": [0, 1], "coarse": [0, 0]})
    for column in ("fine", "coarse"):
        table = table.cast_column(column, datasets.ClassLabel(names=["a", "b"]))
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    options: dict[str, Any] = {"path": str(tmp_path / "train.parquet"), "image_size": None, "resize": "stretch"}
    with pytest.raises(UserError, match=r"data\.label_column=null: which of fine, coarse is meant"):
        loaded("hub", **options)
    assert loaded("hub", **options, label_column="fine").spec.class_names == ["a", "b"]


def test_no_image_column(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="no column of images is found") as caught:
        loaded("hub", path=str(tmp_path / "train.parquet"))
    assert "columns: text, label" in str(caught.value)


def test_mixed_channels_are_refused_or_converted(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [png(0), png(1, "L"), png(2)], label=[0, 1, 0])
    options: dict[str, Any] = {"path": str(tmp_path / "train.parquet"), "image_size": None, "resize": "stretch"}
    with pytest.raises(UserError, match="row 1 has 1 channel, the first image has 3 channels"):
        loaded("hub", **options)
    assert loaded("hub", **options, channels=3).spec.form.shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("image_folder", {}, "data.path"),
        ("hub", {}, "data.hub_id"),
        ("cifar10", {"path": "/no/such/place"}, "data.path"),
        ("digits", {"mean": [0.5]}, "data.std"),
        ("digits", {"std": [0.5]}, "data.mean"),
        ("digits", {"mean": [0.5], "std": [0.5, 0.5]}, "data.std"),
        ("mnist", {"mean": [0.5] * 3, "std": [0.5] * 3}, "data.mean"),
        ("digits", {"crop_padding": 32}, "data.crop_padding"),
        ("cifar10", {"resize": "crop"}, "data.resize"),
    ],
)
def test_contradictions_are_found_before_anything_is_read(name: str, changes: dict[str, Any], key: str) -> None:
    [problem] = image_problems(data_config(name, **changes))
    assert problem.key == key


def test_mean_of_the_wrong_length_is_found_when_the_images_are_known() -> None:
    with pytest.raises(UserError, match=r"data.mean has 3 values, the images have 1 channel"):
        loaded("digits", mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_real_mnist(tmp_path: Path) -> None:
    module = loaded("mnist", path=str(SHARED / "mnist" / "test.parquet"))
    assert module.spec.form.shape == (1, 28, 28)
    assert {name: len(dataset) for name, dataset in module.sets.items()} == {"train": 9000, "val": 1000}
    counts = torch.cat([image_set(module, name).labels for name in module.sets]).bincount().tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of MNIST's 10,000 test images

"""Data sets, images and models of somebody else: nothing executes, nothing outside is read or written.

Each case changes one thing in an innocent set or model and gives the words of a command.
"""

import json
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign import Place, check_refused, slow_jpeg
from PIL import Image

from trainer.cli import main
from trainer.data.images import decode

IMAGES = ["task=cnn", "data=image_folder", "data.path=images", "logger=none", "run.report=false",
          "trainer.accelerator=cpu",
          "trainer.max_steps=1", "data.image_size=16", "trainer.enable_progress_bar=false"]  # fmt: skip


def images(place: Place, form: str = "PNG") -> Path:
    """An innocent set: two classes of eight images."""
    folder = place.directory / "images"
    for number in range(16):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path, format=form)
    return folder


def set_has_a_link(place: Place) -> list[str]:
    (images(place) / "a" / "99.png").symlink_to(place.victim)
    return IMAGES


def set_has_a_linked_folder(place: Place) -> list[str]:
    (images(place) / "c").symlink_to(place.outside)
    return IMAGES


def set_holds_postscript(place: Place) -> list[str]:
    images(place, form="EPS")
    return IMAGES


def set_holds_a_bomb(place: Place) -> list[str]:
    """A few kilobytes that stand for a billion pixels."""
    folder = images(place)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )
    (folder / "a" / "0.png").write_bytes(png)
    return IMAGES


def rows_name_files(place: Place) -> list[str]:
    import pyarrow as pa
    from pyarrow import parquet

    images(place)
    place.directory.joinpath("images", "a", "0.png").rename(place.outside / "0.png")
    shutil.rmtree("images")
    Path("images").mkdir()
    rows = [{"image": {"bytes": None, "path": str(place.outside / "0.png")}, "label": i % 2} for i in range(16)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array([r["image"] for r in rows], kind), "label": [r["label"] for r in rows]}
    parquet.write_table(pa.table(columns), "images/train.parquet")
    return IMAGES


def card_names_files(place: Place) -> list[str]:
    (images(place) / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: ../outside/*\n---\n")
    return IMAGES


def card_names_a_url(place: Place) -> list[str]:
    header = "configs:\n- config_name: default\n  data_files:\n    train: http://127.0.0.1:9/rows.csv\n"
    (images(place) / "README.md").write_text(f"---\n{header}---\n")
    return IMAGES


def metadata_names_files(place: Place) -> list[str]:
    folder = images(place)
    (folder / "a" / "0.png").rename(place.outside / "0.png")
    (folder / "metadata.csv").write_text("file_name,label\n../outside/0.png,0\na/2.png,1\n")
    return IMAGES


def set_is_hdf5(place: Place) -> list[str]:
    (images(place) / "rows.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    return IMAGES


# --- models


BERT = ["plan", "task=bert", "model=minilm", "logger=none", "run.report=false", "trainer.accelerator=cpu"]


def model_imports_a_package(place: Place) -> list[str]:
    package = place.directory / "innocent"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(f"import os\nos.mknod({str(place.marker)!r})\n")
    return [*BERT, "model.path=package://innocent.inner/model"]


def model(place: Place, **config: Any) -> Path:
    folder = place.directory / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def model_names_other_weights(place: Place) -> list[str]:
    model(place, transformers_weights="../outside/victim")
    return [*BERT, "model.path=model"]


def index_names_other_weights(place: Place) -> list[str]:
    folder = model(place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside/x.safetensors"}}))
    return [*BERT, "model.path=model"]


def model_is_pickled(place: Place) -> list[str]:
    folder = model(place)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(place.payload()))
    return [*BERT, "model.path=model"]


CASES: dict[Callable[[Place], list[str]], str] = {
    set_has_a_link: "outside of the set",
    set_has_a_linked_folder: "outside of the set",
    set_holds_postscript: "not an image",
    set_holds_a_bomb: "900000000 pixels",
    rows_name_files: "outside of the set",
    card_names_files: "outside of the set",
    card_names_a_url: "outside of the set",
    metadata_names_files: "Invalid metadata file_name",
    set_is_hdf5: "is HDF5",
    model_imports_a_package: "without dots",
    model_names_other_weights: "transformers_weights",
    index_names_other_weights: "outside of the folder",
    model_is_pickled: "pickled",
}


@pytest.mark.parametrize("plant", CASES, ids=lambda plant: plant.__name__)
def test_a_foreign_set_or_model_is_refused(
    plant: Callable[[Place], list[str]],
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_refused(plant, CASES[plant], place, capsys, monkeypatch)


def test_a_set_with_an_image_that_takes_long_is_refused(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "DECODE_LIMIT_S", 0.3)

    def plant(place: Place) -> list[str]:
        (images(place) / "a" / "99.jpg").write_bytes(slow_jpeg(2000, 1000))
        return IMAGES

    check_refused(plant, "99.jpg takes longer than 0.3 s to decode", place, capsys, monkeypatch)


def test_an_innocent_set_works(place: Place) -> None:
    images(place)
    (place.directory / "images" / "a" / "98.png").symlink_to("0.png")
    (place.directory / "images" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert main(IMAGES) == 0

"""The decoded cache: complete or absent, built once, with exact statistics."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from trainer.data.images.cache import ImageCache, image_cache, moments
from trainer.errors import UserError

SHAPE = (5, 3, 4, 4)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def fill(pixels: np.ndarray) -> Mapping[int, str]:
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    pixels[2] = 0
    return {2: "row 2: broken"}


def must_not_build(pixels: np.ndarray) -> Mapping[int, str]:
    raise AssertionError("built again")


def same(a: ImageCache, b: ImageCache) -> bool:
    return a.folder == b.folder and a.sha256 == b.sha256 and np.array_equal(a.pixels, b.pixels)


def test_a_cache_is_built_once_and_then_opened(root: Path) -> None:
    first = image_cache({"rows": "a"}, SHAPE, fill)
    assert same(image_cache({"rows": "a"}, SHAPE, must_not_build), first)
    assert first.unusable == {2: "row 2: broken"}
    assert sorted(path.name for path in root.iterdir()) == [first.folder.name, f"{first.folder.name}.lock"]


def test_another_key_is_another_cache() -> None:
    folders = {image_cache(key, shape, fill).folder for key, shape in [({"rows": "a"}, SHAPE), ({"rows": "b"}, SHAPE)]}
    folders.add(image_cache({"rows": "a"}, (4, 3, 4, 4), fill).folder)
    assert len(folders) == 3


def test_statistics_are_exact() -> None:
    cache = image_cache({"rows": "a"}, SHAPE, fill)
    values = np.asarray(cache.pixels, dtype=np.int64)
    np.testing.assert_array_equal(cache.sums, values.sum(axis=(2, 3)))
    np.testing.assert_array_equal(cache.squares, (values**2).sum(axis=(2, 3)))


def test_statistics_of_more_than_a_chunk() -> None:
    values = np.full((1500, 1, 2, 2), 255, dtype=np.uint8)
    np.testing.assert_array_equal(moments(values)[1], np.full((1500, 1), 4 * 255**2))


def test_a_failed_build_leaves_nothing(root: Path) -> None:
    def fail(pixels: np.ndarray) -> Mapping[int, str]:
        raise UserError("mixed channels")

    with pytest.raises(UserError, match="mixed channels"):
        image_cache({"rows": "a"}, SHAPE, fail)
    assert [path.suffix for path in root.iterdir()] == [".lock"]
    image_cache({"rows": "a"}, SHAPE, fill)


@pytest.mark.parametrize("name", ["pixels.npy", "sums.npy", "facts.json"])
def test_a_damaged_cache_is_built_again(name: str) -> None:
    folder = image_cache({"rows": "a"}, SHAPE, fill).folder
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    expected = np.zeros(SHAPE, dtype=np.uint8)
    fill(expected)
    np.testing.assert_array_equal(image_cache({"rows": "a"}, SHAPE, fill).pixels, expected)
    assert (folder / name).read_bytes() == content


def test_leftovers_of_a_killed_build_are_removed(root: Path) -> None:
    folder = image_cache({"rows": "a"}, SHAPE, fill).folder
    leftover = folder.with_suffix(".building")
    folder.rename(leftover)
    (leftover / "facts.json").unlink()
    image_cache({"rows": "a"}, SHAPE, fill)
    assert folder.exists()
    assert not leftover.exists()


def count_builds(tally: str, barrier) -> None:
    def build(pixels: np.ndarray) -> Mapping[int, str]:
        with Path(tally).open("a") as file:
            file.write("built\n")
        return fill(pixels)

    barrier.wait()
    assert image_cache({"rows": "a"}, SHAPE, build).unusable == {2: "row 2: broken"}


def test_one_of_many_processes_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    tally = tmp_path / "tally"
    workers = [context.Process(target=count_builds, args=(str(tally), barrier)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert tally.read_text() == "built\n"


def test_a_cache_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="TRAINER_CACHE=DIRECTORY"):
        image_cache({"rows": "a"}, SHAPE, fill)


def test_too_little_space_is_reported_before_decoding() -> None:
    with pytest.raises(UserError, match=r"it needs .* GiB and .* GiB are free"):
        image_cache({"rows": "a"}, (2**40, 3, 224, 224), must_not_build)


def test_facts_are_plain_json() -> None:
    folder = image_cache({"rows": "a"}, SHAPE, fill).folder
    assert set(json.loads((folder / "facts.json").read_text())) == {"unusable", "sha256"}

"""Sets from directories and files laid out as on the hub, and the errors where they are not."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from PIL import Image

from trainer.data import sources
from trainer.data.sources import Source, check_rows, load_splits, path_problems, rows_sha256, split_fingerprint
from trainer.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))


def local(path: Path, subset: str | None = None) -> Source:
    return Source(hub_id=None, subset=subset, path=str(path))


def table(num_rows: int, start: int = 0) -> datasets.Dataset:
    rows = range(start, start + num_rows)
    return datasets.Dataset.from_dict({"text": [f"row {i}" for i in rows], "label": [i % 2 for i in rows]})


def save_images(folder: Path, count: int, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"test_{number}.{suffix}")


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train.parquet", "validation.parquet"),
        ("data/train-00000-of-00002.parquet", "data/valid-00000-of-00001.parquet"),
        ("train/0000.parquet", "dev/0000.parquet"),
    ],
)
def test_parquet_named_by_split(tmp_path: Path, train: str, val: str) -> None:
    names = [train, train.replace("00000-of", "00001-of")] if "-of-" in train else [train]
    for name, start in [*((name, 5 * i) for i, name in enumerate(names)), (val, 100)]:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        table(5, start).to_parquet(tmp_path / "set" / name)
    splits = load_splits(local(tmp_path / "set"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 5 * len(names), "val": 5}
    assert splits["val"]["text"][0] == "row 100"


def test_subset_is_the_folder_below(tmp_path: Path) -> None:
    for subset, count in [("mrpc", 3), ("sst2", 4)]:
        (tmp_path / "glue" / subset).mkdir(parents=True)
        table(count).to_parquet(tmp_path / "glue" / subset / "train.parquet")
    assert len(load_splits(local(tmp_path / "glue", "sst2"))["train"]) == 4
    assert len(load_splits(local(tmp_path / "glue" / "mrpc", "mrpc"))["train"]) == 3


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_single_file_is_the_training_split(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows.{suffix}"
    rows = table(3)
    if suffix == "parquet":
        rows.to_parquet(file)
    elif suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        rows.to_csv(file, index=False, sep="," if suffix == "csv" else "\t")
    splits = load_splits(local(file))
    assert list(splits) == ["train"]
    assert splits["train"]["text"][:] == ["row 0", "row 1", "row 2"]


def test_folder_a_class_ignores_file_names(tmp_path: Path) -> None:
    save_images(tmp_path / "pets" / "cat", 2)
    save_images(tmp_path / "pets" / "dog", 3)
    splits = load_splits(local(tmp_path / "pets"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 5}
    assert splits["train"].features["label"].names == ["cat", "dog"]


def test_folder_a_class_below_split_folders(tmp_path: Path) -> None:
    for split, count in [("train", 4), ("val", 2), ("test", 1)]:
        save_images(tmp_path / "pets" / split / "cat", count)
        save_images(tmp_path / "pets" / split / "dog", count)
    splits = load_splits(local(tmp_path / "pets"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 8, "val": 4, "test": 2}
    assert splits["val"]["label"] == [0, 0, 1, 1]


def test_folder_of_images_without_classes(tmp_path: Path) -> None:
    save_images(tmp_path / "faces", 3, "jpg")
    assert "label" not in load_splits(local(tmp_path / "faces"))["train"].features


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    table(3).to_parquet(file)
    first = split_fingerprint(load_splits(local(file))["train"])
    assert split_fingerprint(load_splits(local(file))["train"]) == first
    file.unlink()
    table(4).to_parquet(file)
    assert split_fingerprint(load_splits(local(file))["train"]) != first


def test_path_problems(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    assert path_problems(None) == []
    [missing] = path_problems(str(tmp_path / "nope"))
    assert "no such file or directory" in str(missing)
    assert "empty, notes.txt" in str(missing)
    assert "is empty" in str(path_problems(str(tmp_path / "empty"))[0])
    assert ".parquet" in str(path_problems(str(tmp_path / "notes.txt"))[0])


def test_unreadable_files_are_user_errors(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="bad: cannot be read: Parquet magic bytes") as caught:
        load_splits(local(tmp_path / "bad"))
    assert capfd.readouterr() == ("", "")
    assert len(caught.value.lines) <= 3


def test_unreadable_files_name_their_key(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(UserError, match=r"data.train=.*bad.parquet: cannot be read"):
        load_splits(Source(None, None, str(tmp_path / "bad.parquet"), "data.train"))


def test_caches_are_in_the_trainers_cache(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    table(3).to_parquet(file)
    split = load_splits(local(file))["train"]
    assert split.cache_files
    assert all(Path(entry["filename"]).is_relative_to(tmp_path / "cache") for entry in split.cache_files)


def test_no_training_split(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    table(2).to_parquet(tmp_path / "set" / "test.parquet")
    table(2).to_parquet(tmp_path / "set" / "validation.parquet")
    with pytest.raises(UserError, match="no training split; found validation, test"):
        load_splits(local(tmp_path / "set"))


def test_no_route_to_the_hub_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "route_problem", lambda endpoint: "refused")
    with pytest.raises(UserError, match="offline") as caught:
        load_splits(Source(hub_id="nobody/nothing-of-that-name", subset=None, path=None))
    assert "data.path=" in str(caught.value)


def test_import_is_light() -> None:
    code = "import sys, trainer.data.sources; print([m for m in ('torch', 'datasets') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_rows_are_those_of_the_hash_wherever_they_are(tmp_path: Path) -> None:
    rows = table(8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    rows.to_parquet(tmp_path / "a" / "train.parquet")
    rows.select(range(3)).to_parquet(tmp_path / "b" / "train-0.parquet")
    rows.select(range(3, 8)).to_parquet(tmp_path / "b" / "train-1.parquet")
    whole, cut = (load_splits(local(tmp_path / name)) for name in ("a", "b"))
    digest = rows_sha256(whole)
    check_rows(cut, replace(local(tmp_path / "b"), sha256=digest))
    changed = {"train": whole["train"].select([*range(7), 0])}
    with pytest.raises(UserError, match=f"data.sha256={digest}: .* is another set") as refusal:
        check_rows(changed, replace(local(tmp_path / "a"), sha256=digest))
    assert f"its rows hash to {rows_sha256(changed)}" in refusal.value.lines[1]
    # Independently: each value with its length, row by row.
    columns = sorted(rows.column_names)
    expected = hashlib.sha256(f"train 8 {' '.join(columns)}\n".encode())
    for row in rows.to_list():
        for value in (row[column] for column in columns):
            text = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            expected.update(len(text).to_bytes(8, "big") + text)
    assert digest == expected.hexdigest()


def test_the_hub_is_asked_for_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of the hub's that knows no set sees what is asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
    for settings in (constants, datasets.config):
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(sources, "route_problem", lambda endpoint: None)
    with pytest.raises(UserError):
        load_splits(Source("owner/name", None, None, revision="0123abcd"))
    server.shutdown()
    server.server_close()
    assert asked and any("0123abcd" in path for path in asked), asked

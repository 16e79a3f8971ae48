"""Where data sets come from: the hub by id, or a local directory or file laid out as on the hub.

`datasets` does the reading; it is imported only when a set is asked for. Added here is what it lacks: which of a set's
splits are train, val and test, folders of images whose file names look like splits, and errors of one to three lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.cache import cache_root, private_cache
from trainer.data.confined import check_folder, own_root
from trainer.errors import Problem, UserError
from trainer.network import route_problem

if TYPE_CHECKING:
    import datasets

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "val": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
COMMIT = re.compile(r"[0-9a-f]{40}")
HASHED_ROWS = 256  # that are in memory at a time
EXPECTED = "expected parquet, csv or jsonl files named by split (train, validation, test), or one folder a class"


@dataclass(frozen=True)
class Source:
    """One data set.

    hub_id: owner/name on the hub. subset: its configuration, or the folder of that name below `path`. path: a local
    directory or file, which replaces the hub where it is given. key: of the configuration that names the path.
    revision: commit on the hub, None for the newest. sha256: what `rows_sha256` has to give, None for anything.
    """

    hub_id: str | None
    subset: str | None
    path: str | None
    key: str = "data.path"
    revision: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        if self.path:
            return f"{self.key}={self.path}"
        return f"hub id {self.hub_id}" + (f" ({self.subset})" if self.subset else "")


def load_splits(source: Source) -> dict[str, datasets.Dataset]:
    """All splits of a set under the names train, val and test; train is always among them.

    Raises: UserError: there is no such set, it cannot be read, or the hub cannot be reached.
    """
    found = _load_local(source) if source.path else _load_hub(source)
    splits = {SPLITS[name]: split for name, split in found.items() if name in SPLITS}
    if not splits and len(found) == 1:
        splits = {"train": next(iter(found.values()))}
    if "train" not in splits:
        raise UserError(f"{source}: no training split; found {', '.join(map(str, found))}", EXPECTED)
    empty = [name for name, split in splits.items() if len(split) == 0]
    if empty:
        raise UserError(f"{source}: the {empty[0]} split has no rows", EXPECTED)
    return splits


def check_rows(splits: Mapping[str, datasets.Dataset], source: Source) -> None:
    """Compare the rows with `sha256`, once it is known that they name no files elsewhere.

    Raises: UserError: they are others.
    """
    if source.sha256 is not None and (digest := rows_sha256(splits)) != source.sha256:
        raise UserError(f"data.sha256={source.sha256}: {source} is another set", f"its rows hash to {digest}")


def rows_sha256(splits: Mapping[str, datasets.Dataset]) -> str:
    """SHA-256 of what the rows of all splits hold, whatever files they are in."""
    digest = hashlib.sha256()
    for name, split in sorted(splits.items()):
        columns = sorted(split.column_names)
        digest.update(f"{name} {len(split)} {' '.join(columns)}\n".encode())
        batches: Any = split.with_format("arrow").iter(batch_size=HASHED_ROWS)
        for batch in batches:
            for row in batch.to_pylist():
                for content in (_content(row[column]) for column in columns):
                    digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _content(value: Any) -> bytes:
    """One value as bytes; an encoded image without the name of its file."""
    if isinstance(value, Mapping) and "bytes" in value:
        encoded = value["bytes"]
        return Path(value["path"]).read_bytes() if encoded is None and value.get("path") else encoded or b""
    return value.encode() if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str).encode()


def file_roots(source: Source) -> list[Path]:
    """Where the files of a set may lie that its rows name."""
    if source.path:
        return [own_root(Path(source.path).expanduser())]
    from huggingface_hub import constants

    return [Path(constants.HF_HUB_CACHE).resolve(), (cache_root() / "datasets").resolve()]


def hub_commit(splits: Mapping[str, datasets.Dataset], source: Source) -> str | None:
    """The commit that a set was fetched at; None for one that is not of the hub.

    datasets names the folder of its tables by it.
    """
    if source.path or source.hub_id is None:
        return None
    folders = [Path(file["filename"]).parent.name for split in splits.values() for file in split.cache_files]
    return next((name for name in folders if COMMIT.fullmatch(name)), None)


def pinning_note(source: Source, commit: str | None) -> str | None:
    """How to take a set again as it was fetched, where the configuration does not say so already."""
    if commit is None or commit == source.revision:
        return None
    return f"{source}: the newest revision was taken; data.revision={commit} takes it again"


def split_fingerprint(dataset: datasets.Dataset) -> str:
    """Key of a split's rows for caches: it changes with the source files and with what was done to the rows."""
    return dataset._fingerprint


def path_problems(path: str | None, key: str = "data.path") -> list[Problem]:
    """What is wrong with a local path before it is read: it is missing, an empty directory, or of no known format."""
    if path is None:
        return []
    place = Path(path).expanduser()
    if not place.exists():
        return [Problem(key, path, f"no such file or directory{_nearest_parent(place)}")]
    if place.is_dir() and not any(file.is_file() for file in place.rglob("*")):
        return [Problem(key, path, f"the directory is empty; {EXPECTED}")]
    if place.is_file() and place.suffix.lower() not in FORMATS:
        return [Problem(key, path, f"not a format that is read; possible: {', '.join(sorted(FORMATS))}")]
    return []


def revision_problems(revision: str | None, path: str | None) -> list[Problem]:
    """A commit of the hub beside a local copy, which has none."""
    both = revision is not None and path is not None
    return [Problem("data.revision", revision, "is of the hub, and data.path is a local copy")] if both else []


def _nearest_parent(place: Path) -> str:
    parent = next(parent for parent in place.absolute().parents if parent.exists())
    names = sorted(child.name for child in parent.iterdir() if not child.name.startswith("."))[:5]
    return f"; {parent} holds {', '.join(names)}" if names else f"; {parent} is empty"


def _load_local(source: Source) -> dict[str, datasets.Dataset]:
    problems = path_problems(source.path, source.key)
    if problems:
        raise UserError(*(str(problem) for problem in problems))
    place = Path(source.path or "").expanduser().resolve()
    if place.is_dir():
        check_folder(place, str(source))
    if source.subset and (place / source.subset).is_dir():
        place = place / source.subset
    if place.is_file():
        separator = {"sep": "\t"} if place.suffix.lower() == ".tsv" else {}
        return _load(source, path=FORMATS[place.suffix.lower()], data_files={"train": str(place)}, **separator)
    images = _image_splits(place)
    if images:
        return _load(source, path="imagefolder", data_files=images)
    return _load(source, path=str(place))


def _image_splits(place: Path) -> dict[str, str] | None:
    """Patterns of a folder of images by split; None where there are tables or no images.

    datasets takes an image called test_1.png for a test split; here only folders directly below are splits.
    """
    files = (file for file in place.rglob("*") if file.is_file() and not file.name.startswith("."))
    first = next((file for file in files if file.suffix.lower() in IMAGE_SUFFIXES | FORMATS.keys()), None)
    if first is None or first.suffix.lower() not in IMAGE_SUFFIXES:
        return None
    folders = [child.name for child in sorted(place.iterdir()) if child.is_dir() and child.name in SPLITS]
    root = str(place)
    return {name: f"{root}/{name}/**" for name in folders} if "train" in folders else {"train": f"{root}/**"}


def _load_hub(source: Source) -> dict[str, datasets.Dataset]:
    if source.hub_id is None:
        raise UserError("data.path and data.hub_id are both null: name a local directory or a set on the hub")
    with _offline_without_route():
        return _load(source, path=source.hub_id, name=source.subset, revision=source.revision)


def _load(source: Source, **arguments: Any) -> dict[str, datasets.Dataset]:
    """datasets.load_dataset with its errors as user errors."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        cache = str(private_cache("datasets"))
        with _quiet(bars=not source.path and os.environ.get("LOCAL_RANK", "0") == "0"):
            return dict(datasets.load_dataset(**arguments, cache_dir=cache))  # pyright: ignore[reportReturnType]
    except ConnectionError as error:
        raise UserError(
            f"{source}: the hub cannot be reached (offline), and the set is not in its local cache",
            "use a local copy with data.path=DIRECTORY",
            EXPECTED,
        ) from error
    except DatasetNotFoundError as error:
        raise UserError(f"{source}: {_sentence(error)}", "a private set needs `hf auth login`") from error
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be read: {_sentence(error)}", EXPECTED) from error


def _sentence(error: BaseException) -> str:
    """The first error of a chain, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else words[:197] + "..."


@contextmanager
def _quiet(bars: bool) -> Iterator[None]:
    """No log lines beside the error that is printed, and no progress bars without a download."""
    import datasets

    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before)
        datasets.enable_progress_bars()


@contextmanager
def _offline_without_route() -> Iterator[None]:
    """Without a route to the hub use only its local cache; the library would retry for 23 s first."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    if route_problem(constants.ENDPOINT) is not None:
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before

"""Where a run reads and writes: data, run directories, caches."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trainer.config.schema import Config
from trainer.data.cache import cache_root, foreign_access
from trainer.data.sources import path_problems
from trainer.estimate.memory import FLOAT32, state_bytes
from trainer.network import proxy_of, route_problem
from trainer.task import get_task
from trainer.verbs.doctor.report import Finding
from trainer.world import World

GIB = 2**30
DATA_PATHS = ("path", "train", "validation", "test")
# Used where the model's size is unknown before its data is read.
LEAST_FREE_BYTES = GIB
# A run writes tens of files, and as many again for caches and checkpoints.
LEAST_FREE_INODES = 1000


def check_data(config: Config, world: World) -> Iterator[Finding]:
    """The configured files exist and can be read; a data set of the hub is cached, or the hub can be reached."""
    values = {key: getattr(config.data, key, None) for key in DATA_PATHS}
    places = {f"data.{key}": value for key, value in values.items() if isinstance(value, str)}
    for key, value in places.items():
        yield _readable(key, value)
    hub_id = getattr(config.data, "hub_id", None)
    if places:
        return
    yield (_on_the_hub(hub_id) if isinstance(hub_id, str) else Finding("data", "ok", f"{config.data.name}: no files"))


def _readable(key: str, value: str) -> Finding:
    place = Path(value).expanduser()
    problems = [] if place.is_file() else path_problems(value, key)
    if problems:
        return Finding("data", "failure", str(problems[0]), f"{key}=PATH of existing files")
    file = place if place.is_file() else next(file for file in place.rglob("*") if file.is_file())
    try:
        with file.open("rb") as opened:
            empty = not opened.read(1)
    except OSError as error:
        remedy = f"chmod -R u+rX {place}, or {key}=PATH of a readable copy"
        return Finding("data", "failure", f"{file} cannot be read: {error.strerror}", remedy)
    if empty:
        return Finding("data", "failure", f"{file} is empty", f"copy it again, or {key}=PATH of another copy")
    return Finding("data", "ok", f"{key}={value} can be read")


def _on_the_hub(hub_id: str) -> Finding:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    if (cache / hub_id.replace("/", "___")).exists():
        return Finding("data", "ok", f"{hub_id} is in the local cache")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    problem, proxy = route_problem(endpoint), proxy_of(endpoint) is not None
    if problem is None:
        return Finding("data", "ok", f"{hub_id}: {endpoint} can be reached" + (" through a proxy" if proxy else ""))
    found = f"{hub_id} is not in {cache}, and {endpoint} cannot be reached ({problem})"
    return Finding("data", "failure", found, "data.path=DIRECTORY with a copy, or HF_ENDPOINT=URL of a mirror")


def check_outputs(config: Config, world: World) -> Iterator[Finding]:
    """Run directories can be written, and have room for a run."""
    root = Path(config.run.root).absolute()
    problem = _write_problem(root)
    if problem is not None:
        yield Finding("outputs", "failure", problem, "run.root=DIRECTORY that can be written")
        return
    place = _existing(root)
    needed, why = needed_bytes(config)
    free = shutil.disk_usage(place).free
    found = f"{place}: {_amount(free)} free; {_amount(needed)} needed, {why}"
    remedy = "run.root=DIRECTORY on a larger disk, or checkpoint.keep=1"
    yield Finding("outputs", "ok", found) if free >= needed else Finding("outputs", "failure", found, remedy)
    inodes = os.statvfs(place)
    # File systems without a fixed number report 0.
    if inodes.f_files and inodes.f_favail < LEAST_FREE_INODES:
        found = f"{place}: {inodes.f_favail} inodes free of {inodes.f_files}"
        yield Finding("inodes", "failure", found, "delete small files there, or run.root=DIRECTORY elsewhere")


def check_cache(config: Config, world: World) -> Iterator[Finding]:
    """The cache of prepared data can be written, by this user alone."""
    root = cache_root()
    problem = _write_problem(root)
    access = foreign_access(root) if root.is_dir() else None
    if problem is not None:
        yield Finding("cache", "failure", problem, "TRAINER_CACHE=DIRECTORY that can be written")
    elif access is not None:
        yield Finding("cache", "failure", f"{root} {access}", "TRAINER_CACHE=DIRECTORY that only you can write to")
    else:
        yield Finding("cache", "ok", f"{root}: {_amount(shutil.disk_usage(_existing(root)).free)} free")


def needed_bytes(config: Config) -> tuple[int, str]:
    """Largest size of a run's directory. Returns: (bytes, what they are for)."""
    sizes = get_task(config.task.name, config.plugins).model_sizes(config)
    if sizes is None:
        return LEAST_FREE_BYTES, "the minimum where the model's size is unknown"
    # The newest ones, the best, and the one being written; then the exported weights.
    checkpoints = config.checkpoint.keep + 2
    checkpoint = FLOAT32 * sizes.total + state_bytes(config.optimizer, FLOAT32) * sizes.trained
    return checkpoints * checkpoint + FLOAT32 * sizes.total, f"for {checkpoints} checkpoints and the weights"


def _existing(place: Path) -> Path:
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _write_problem(directory: Path) -> str | None:
    """Why the nearest existing folder cannot be written, found by trying; None where it can."""
    place = _existing(directory)
    if not place.is_dir():
        return f"{place} is a file, not a directory"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return f"{place} cannot be written: {error.strerror}"
    return None


def _amount(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.1f} MiB"

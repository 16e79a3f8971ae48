"""A run is a directory: its identity, its record, its lock, and whether to resume it or start anew. Torch-free."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import yaml

from trainer.config import Config
from trainer.errors import UserError
from trainer.parsing import config_to_mapping

RECORDED_PACKAGES = (
    "torch", "pytorch-lightning", "hydra-core", "deepspeed", "wandb", "datasets", "transformers", "torchmetrics",
    "numpy",
)  # fmt: skip


def identity(config: Config) -> dict[str, Any]:
    """What defines the experiment, not where or how it runs: two runs with the same identity give the same curve."""
    trainer = config.trainer
    return {
        "task": config_to_mapping(config.task),
        **{name: _without_locations(getattr(config, name)) for name in ("model", "data")},
        "optimizer": config_to_mapping(config.optimizer),
        "scheduler": config_to_mapping(config.scheduler),
        "global_size": config.batch.global_size,
        "seed": config.seed,
        "precision": trainer.precision,
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "gradient_clip_val": trainer.gradient_clip_val,
        "limit_train_batches": trainer.limit_train_batches,
        "sync_batchnorm": trainer.sync_batchnorm,
        "patience": config.monitor.patience,
    }


def identity_hash(config: Config) -> str:
    """First eight hexadecimal digits of the identity's SHA-256."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _without_locations(node: Any) -> dict[str, Any]:
    return {key: value for key, value in config_to_mapping(node).items() if key not in node.NOT_IDENTITY}


class Record:
    """run.json of a run directory: identity, W&B id, attempts with versions, hardware, start, end and cause.

    Written by one process at a time: whoever holds the run's lock, or rank 0 on its behalf while ranks run.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "run.json"

    def read(self) -> dict[str, Any]:
        """The record as it stands. Raises: UserError: this is no run directory."""
        try:
            return json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"run={self.directory}: not a run directory (no readable run.json)") from error

    def update(self, **values: Any) -> None:
        """Replace top-level values, atomically."""
        write_json(self.file, {**self.read(), **values})

    def begin_attempt(self, launcher: str, world_size: int) -> None:
        """Training starts (again): from which code, on what."""
        attempt = {
            "start": _now(),
            "end": None,
            "cause": None,
            "command": sys.argv,
            "launcher": launcher,
            "world_size": world_size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "user": _user(),
            "git": git_state(),
            "versions": {"python": platform.python_version(), **package_versions()},
            "hardware": {"cpu": cpu_name(), "num_cores": os.cpu_count(), "gpus": gpu_names()},
        }
        self.update(status="running", attempts=[*self.read()["attempts"], attempt])

    def end_attempt(self, status: str, cause: str) -> None:
        """How the attempt ended: status is finished, stopped or failed; cause is a sentence."""
        attempts = self.read()["attempts"]
        attempts[-1].update(end=_now(), cause=cause)
        self.update(status=status, attempts=attempts)


@dataclass
class Run:
    """An open run directory, locked as long as this object's process lives.

    resumed: the directory existed, unfinished, and is continued.
    """

    directory: Path
    resumed: bool
    lock: TextIO

    @property
    def record(self) -> Record:
        """Its run.json."""
        return Record(self.directory)

    def close(self) -> None:
        """Let go of the lock."""
        self.lock.close()


def open_run(config: Config, mapping: Mapping[str, Any]) -> Run:
    """Resume the unfinished run of this identity, or make a new directory beside the finished ones.

    Args: mapping: the composed configuration, secrets as references, written to config.yaml.
    Raises: UserError: the run is in use, or run.name belongs to another experiment.
    """
    base = config.run.name or f"{config.model.name}-{config.data.name}-{identity_hash(config)}"
    parent = Path(config.run.root) / config.task.name
    directory, resumed = _choose(parent, base, config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        run = Run(directory, resumed, _acquire(directory))
    except OSError as error:
        raise UserError(f"run.root={config.run.root}: {directory} cannot be written ({error.strerror})") from error
    for folder in ("logs", "checkpoints"):
        (directory / folder).mkdir(exist_ok=True)
    if not resumed:
        write_json(run.record.file, _new_record(config))
    write_text(directory / "config.yaml", yaml.safe_dump(dict(mapping), sort_keys=False))
    return run


def _new_record(config: Config) -> dict[str, Any]:
    return {
        "status": "created",
        "created": _now(),
        "hash": identity_hash(config),
        "identity": identity(config),
        # Before W&B starts: a run that dies in its first second is still continued under the same id.
        "wandb_id": secrets.token_hex(4),
        "attempts": [],
    }


def _choose(parent: Path, base: str, config: Config) -> tuple[Path, bool]:
    number, latest = 1, None
    while (candidate := parent / (base if number == 1 else f"{base}-{number}")).exists():
        latest, number = candidate, number + 1
    if latest is None or not (latest / "run.json").exists():
        return latest or candidate, False
    record = Record(latest).read()
    if record["hash"] != identity_hash(config):
        differing = ", ".join(_differing(record["identity"], identity(config)))
        raise UserError(
            f"run.name={config.run.name}: {latest} holds another experiment; it differs in {differing}",
            "choose another run.name, or leave it out",
        )
    if record["status"] == "finished" or config.run.fresh:
        return candidate, False
    return latest, True


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _acquire(directory: Path) -> TextIO:
    """Hold the directory as long as this process lives: the kernel lets go of a flock when its holder dies."""
    lock = (directory / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise UserError(
            f"{directory} is in use by {holder}", "wait for it, end it, or start beside it with run.fresh=true"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    return lock


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old text or the new one."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with staged.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file at once."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def cpu_name() -> str:
    """The processor as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def gpu_names() -> list[str]:
    """Names of the GPUs as the driver lists them; empty where there is no driver."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def package_versions() -> dict[str, str | None]:
    """Installed versions of the packages that shape a run; null where one is missing."""
    versions: dict[str, str | None] = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_state() -> dict[str, str] | None:
    """SHA and uncommitted diff of the repository that the code stands in; null outside one."""
    home = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(home), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    return None if sha is None else {"sha": sha, "diff": git("diff", "HEAD") or ""}

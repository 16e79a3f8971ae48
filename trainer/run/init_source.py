"""Which file a new run starts from, and its hash, before torch is imported."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from trainer.config.identity import identity_hash
from trainer.config.schema import Config, InitConfig
from trainer.config.yaml_limits import read_yaml_text
from trainer.errors import UserError
from trainer.run.files import CHECKPOINTS_DIR, CONFIG_FILE, MODEL_FILE, RECORD_FILE, STATE_FILE
from trainer.run.opening import open_stored_run

# What Lightning takes for a name of a checkpoint of the same run.
LIGHTNING_NAMES = ("last", "best", "hpc", "registry")


def with_source(config: Config, mapping: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """A run's configuration with init.sha256, the hash of the file that it starts from, which is part of its identity.

    The same command resumes a run whose source is gone: the hash is then that of the run that has started from it.

    Args: mapping: the same configuration as it is written to config.yaml.
    Raises: UserError: there is no such file, or it is not the expected one.
    """
    init = config.init
    if init.from_ is None and init.ckpt_path is None:
        return config, mapping
    found = _recorded_hash(config) or _file_hash(init)
    if init.sha256 is not None and found != init.sha256:
        raise UserError(f"init.sha256={init.sha256}: {source_file(init)} is another file", f"it hashes to {found}")
    written = {**mapping, "init": {**mapping["init"], "sha256": found}}
    return replace(config, init=replace(init, sha256=found)), written


def source_file(init: InitConfig) -> Path:
    """The file that init.from or init.ckpt_path names. Raises: UserError: there is none."""
    given = source_key(init)
    place, run = source_path(init), source_run(init)
    if run is not None:
        open_stored_run(run)
    if place.is_file():
        return place
    if place.name in LIGHTNING_NAMES and init.ckpt_path == place.name and not place.exists():
        advice = "the same command resumes its own run by itself; ckpt_path=PATH starts a new run from a whole state"
        raise UserError(f"{given}: {advice}")
    if not place.exists():
        raise UserError(f"{given}: no such file or directory")
    checkpoints = [place / CHECKPOINTS_DIR / name / STATE_FILE for name in ("best", "last")]
    if init.ckpt_path is None:
        possible = [place / MODEL_FILE, place / STATE_FILE, *checkpoints]
    else:
        possible = [place / STATE_FILE, checkpoints[1]]
    for file in possible:
        if file.is_file():
            return file
    kind = "run has no checkpoint yet" if (place / RECORD_FILE).exists() else "directory is no run and no checkpoint"
    names = ", ".join(str(file.relative_to(place)) for file in possible)
    raise UserError(f"{given}: the {kind}", f"looked for {names}")


def source_run(init: InitConfig) -> Path | None:
    """The directory of the run that the source belongs to, as far as it lies in one."""
    place = source_path(init).resolve()
    # RUN, RUN/FILE, RUN/checkpoints/NAME or RUN/checkpoints/NAME/FILE
    return next((folder for folder in (place, *place.parents[:3]) if (folder / RECORD_FILE).exists()), None)


def source_path(init: InitConfig) -> Path:
    """The path as it was given."""
    return Path(str(init.from_ if init.ckpt_path is None else init.ckpt_path)).expanduser()


def source_key(init: InitConfig) -> str:
    """The key and its value, for messages."""
    return f"init.from={init.from_}" if init.ckpt_path is None else f"init.ckpt_path={init.ckpt_path}"


def _file_hash(init: InitConfig) -> str:
    file = source_file(init)
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{source_key(init)}: {file} cannot be read ({error.strerror})") from error


def _recorded_hash(config: Config) -> str | None:
    """The hash of a source that is gone, from the run that this command resumes; None where the source is there."""
    if source_path(config.init).exists():
        return None
    for file in sorted((Path(config.run.root) / config.task.name).glob(f"*/{CONFIG_FILE}")):
        try:
            init = yaml.safe_load(read_yaml_text(file))["init"]
            record = open_stored_run(file.parent)
        except (OSError, yaml.YAMLError, KeyError, TypeError, UserError):
            continue  # no run that could be resumed
        if (init["from"], init["ckpt_path"]) != (config.init.from_, config.init.ckpt_path):
            continue
        alike = replace(config, init=replace(config.init, sha256=init["sha256"]))
        unfinished = record["status"] != "finished" and record["hash"] == identity_hash(alike)
        # A named run may have become longer; `open_run` compares the rest.
        if unfinished or file.parent.name == config.run.name:
            return init["sha256"]
    return None

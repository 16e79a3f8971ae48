"""Provenance of a run: package versions, state of the git repository, hardware."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from trainer.config.secrets import redact_text

RECORDED_PACKAGES = (
    "torch", "pytorch-lightning", "hydra-core", "deepspeed", "wandb", "datasets", "transformers", "torchmetrics",
    "numpy",
)  # fmt: skip
GIT_TIMEOUT_S = 10


def user_name() -> str:
    """The login name, or the user id where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def cpu_name() -> str:
    """The processor's name as Linux reports it."""
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
    """Installed versions of the packages that affect a run; null where one is missing."""
    versions: dict[str, str | None] = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_state(with_diff: bool) -> dict[str, Any] | None:
    """SHA of the repository that holds this code, and whether it has uncommitted changes; None outside of one.

    Args: with_diff: add the changes themselves, which may hold what is not meant to be shared.
    """
    home = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(home), *words], capture_output=True, text=True, timeout=GIT_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    if sha is None:
        return None
    diff = git("diff", "HEAD")
    state: dict[str, Any] = {"sha": sha, "modified": bool(diff)}
    return {**state, "diff": redact_text(diff or "")} if with_diff else state

"""-m: a job for each combination of comma-separated values, each as its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from trainer.compose import parse_overrides
from trainer.errors import EXIT_BUG, EXIT_DONE, UserError
from trainer.launch import is_joined


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a sweep, each as overrides; the last swept key varies fastest. Raises: UserError."""
    choices: list[list[str]] = []
    for word, override in zip(overrides, parse_overrides(overrides), strict=True):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([word])
    return [list(job) for job in product(*choices)]


def sweep(overrides: Sequence[str], config_dirs: Sequence[Path]) -> int:
    """Run the jobs one after the other; a failed one does not stop the rest. Returns: exit code.

    Each job is a process of its own, so that ranks, devices and random state of one cannot reach the next.
    """
    if is_joined():
        raise UserError("-m: a sweep starts its own ranks", "start it without torchrun or srun")
    folders = [f"--config-dir={folder}" for folder in config_dirs]
    jobs, failed = expand(overrides), []
    for number, job in enumerate(jobs, 1):
        print(f"job {number} of {len(jobs)}: {' '.join(job)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "trainer", *folders, *job], check=False)
        if done.returncode != EXIT_DONE:
            failed.append((job, done.returncode))
    for job, code in failed:
        print(f"failed with exit code {code}: {' '.join(job)}", file=sys.stderr)
    return EXIT_BUG if failed else EXIT_DONE

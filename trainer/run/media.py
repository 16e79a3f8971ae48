"""Pictures, tables and profiles in a run directory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.run.files import PROFILE_DIR

TYPES: Mapping[str, str] = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
FOLDERS = (".", "samples")
TABLES = ("predictions*.csv", "predictions*.jsonl", "examples*.csv", "examples*.jsonl", "per_class_*.csv")
OF_A_STEP = re.compile(r"^(?P<series>.*?)-?step-(?P<step>\d+)$")
OF_A_SET = re.compile(r"^(?P<name>.+)[-_](?P<set>train|val|test)$")


@dataclass(frozen=True)
class Picture:
    """A picture. series: what it shows, the same for pictures of different steps. step: None for one on its own."""

    path: Path
    series: str
    step: int | None


def find_pictures(run_dir: Path) -> list[Picture]:
    """Pictures by folder and name."""
    files = [path for folder in FOLDERS for path in sorted((run_dir / folder).glob("*"))]
    return [picture(path, run_dir) for path in files if path.suffix.lower() in TYPES and _is_own(path)]


def find_tables(run_dir: Path) -> list[Path]:
    """Tables of predictions, examples and classes."""
    return [
        path
        for folder in FOLDERS
        for pattern in TABLES
        for path in sorted((run_dir / folder).glob(pattern))
        if _is_own(path)
    ]


def find_profile(run_dir: Path) -> list[Path]:
    """Files that a profiler has written, by name."""
    return [path for path in sorted((run_dir / PROFILE_DIR).glob("*")) if _is_own(path)]


def picture(path: Path, run_dir: Path) -> Picture:
    """What the name of a file says: of `samples/step-00000100.png`, the series `samples` at step 100."""
    match = OF_A_STEP.match(path.stem)
    if match is None:
        return Picture(path, path.stem, None)
    folder = "samples" if path.parent == run_dir else path.parent.name
    return Picture(path, match["series"] or folder, int(match["step"]))


def section_name(path: Path, run_dir: Path) -> str:
    """A name beside those of metrics: `val/confusion` for confusion_val.png, `samples` for samples/step-00000100."""
    of_step = picture(path, run_dir)
    if of_step.step is not None:
        return of_step.series
    match = OF_A_SET.match(path.stem)
    if match is not None:
        return f"{match['set']}/{match['name']}"
    return path.stem if path.parent == run_dir else f"{path.parent.name}/{path.stem}"


def _is_own(path: Path) -> bool:
    """Whether this is a file of the run: a link may lead to any file of the machine."""
    return path.is_file() and not path.is_symlink()

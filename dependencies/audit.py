"""Compare the locks with the table of advisories, without a network: `make audit`.

It needs only Python's standard library, so that it can run before anything is installed. What it does not see: an
advisory that is not in the table (trainer/config/advisories.toml says of when it is), and what a package does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from trainer.config.versions import read_advisories, remedy

FOLDER = Path(__file__).parent
LOCKS = ("cpu.txt", "cuda.txt")
CONSTRAINTS = FOLDER.parent / "constraints.txt"
LOCKED = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>\S+) --hash=sha256:[0-9a-f]{64}")


def problems(lock: Path) -> Iterator[str]:
    """What is wrong with a lock: a line without a hash, an advisory, a version other than the tested one."""
    locked: dict[str, str] = {}
    for line in _lines(lock):
        found = LOCKED.fullmatch(line)
        if found is None:
            yield f"{line}: is not NAME==VERSION with a SHA-256"
        else:
            locked[found["name"]] = found["version"]
    for advisory in read_advisories():
        version = locked.get(advisory.package)
        if version is not None and advisory.affects(version):
            yield f"{advisory.package} {version}: {advisory.about} ({advisory.id}); use {remedy([advisory])}"
    for name, version in (line.split("==") for line in _lines(CONSTRAINTS)):
        own = locked.get(re.sub(r"[-_.]+", "-", name).lower(), "nothing")
        # A local label names a build of the version: 2.13.0+cpu.
        if own.partition("+")[0] != version:
            yield f"{name}: constraints.txt has {version}, the lock has {own}; run make lock"


def main(locks: list[Path]) -> int:
    """Print what is found. Returns: an exit code, 1 if anything is."""
    found = [f"{lock.name}: {problem}" for lock in locks for problem in problems(lock)]
    print("\n".join(found) or f"{', '.join(lock.name for lock in locks)}: nothing in the table of advisories")
    return 1 if found else 0


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


if __name__ == "__main__":
    sys.exit(main([FOLDER / name for name in LOCKS]))

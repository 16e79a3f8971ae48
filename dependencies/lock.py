"""Write the lock of this machine's package index: `make lock`.

pip resolves the package with its development extra within constraints.txt, and reports each archive with its SHA-256.
The lock holds for the Python and the platform that it is made on. Which file is written depends on the build of torch
that the index offers: cpu.txt for one called +cpu, else cuda.txt, where torch brings NVIDIA's libraries.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parent
HEAD = """\
# Written by `make lock`, with Python {python} on {system}: another one may need other packages, and has other archives.
# torch is the build that the package index of this lock offers ({torch}).
"""


def resolve() -> list[dict[str, Any]]:
    """What pip would install into an empty environment. Raises: CalledProcessError: it finds no set that fits."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    words = ["--constraint", "constraints.txt", "--editable", ".[dev]"]
    report = subprocess.run([*pip, *words], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [each for each in json.loads(report)["install"] if "dir_info" not in each["download_info"]]


def write_lock(found: list[dict[str, Any]]) -> Path:
    """Write the lock of what pip reports, one line a package. Returns: the file."""
    lines, torch = [], ""
    for each in found:
        name = re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower()
        version, sha256 = each["metadata"]["version"], each["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={version} --hash=sha256:{sha256}\n")
        torch = version if name == "torch" else torch
    file = FOLDER / ("cpu.txt" if torch.endswith("+cpu") else "cuda.txt")
    python, system = f"{sys.version_info.major}.{sys.version_info.minor}", f"{platform.system()} {platform.machine()}"
    head = HEAD.format(python=python, system=system, torch=torch)
    file.write_text(head + "".join(sorted(lines)), encoding="utf-8")
    return file


if __name__ == "__main__":
    print(write_lock(resolve()).relative_to(REPOSITORY))

"""Where Python looks for modules when a command starts."""

from __future__ import annotations

import sys
from pathlib import Path


def search_working_directory_last() -> None:
    """`python -m` puts the working directory first, where a file called yaml.py would take the package's place."""
    here = Path.cwd().resolve()
    home = Path(__file__).resolve().parent.parent
    if sys.path and here != home and Path(sys.path[0] or ".").resolve() == here:
        sys.path.append(sys.path.pop(0))

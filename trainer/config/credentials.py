"""Which credentials this machine has, found without contacting a service."""

from __future__ import annotations

import os
from pathlib import Path


def has_wandb_key() -> bool:
    """Whether there is a key where wandb looks for one. wandb itself is slow to import, and may prompt."""
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return bool(os.environ.get("WANDB_API_KEY")) or (netrc.exists() and "wandb" in netrc.read_text(encoding="utf-8"))

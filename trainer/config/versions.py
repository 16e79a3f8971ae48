"""Installed packages that must not be imported: found by their metadata, before anything of them runs."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from trainer.errors import UserError

# Uploads that contained malicious code.
MALICIOUS = {"pytorch-lightning": ("2.6.2", "2.6.3"), "lightning": ("2.6.2", "2.6.3")}
# Lower bounds of pyproject.toml for packages that read what comes from elsewhere.
OLDEST = {
    "torch": "2.10",
    "transformers": "5.3",
    "hydra-core": "1.3.6",
    "pillow": "12.1.1",
    "filelock": "3.20.3",
    "jinja2": "3.1.6",
}


def refuse_bad_versions() -> None:
    """Raises: UserError: a package is of a malicious version, or older than this package allows."""
    for name, banned in MALICIOUS.items():
        if (found := _installed(name)) in banned:
            first = f"{name} {found} is installed, an upload with malicious code, and is not imported"
            raise UserError(first, f"remove it (pip uninstall {name}), and change the secrets that this machine has")
    for name, oldest in OLDEST.items():
        found = _installed(name)
        if found is not None and _numbers(found) < _numbers(oldest):
            first = f"{name} {found} is installed; versions before {oldest} are not supported"
            raise UserError(first, f"pip install '{name}>={oldest}'")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The release of a version: 2.10.0rc1+cu130 -> (2, 10, 0)."""
    release = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in release.group().split(".")) if release else ()

"""Packages with a known advisory: found by their metadata, before anything of them is imported."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainer.errors import UserError

TABLE = Path(__file__).with_name("advisories.toml")
_CLAUSE = re.compile(r"(==|<|>=)([\d.]+)")


@dataclass(frozen=True)
class Advisory:
    """One entry of the table, whose head says what its fields mean."""

    id: str
    package: str
    affected: str
    about: str
    refused: bool = False
    also: str | None = None

    def affects(self, version: str) -> bool:
        """Whether a version of the package has it. A release candidate counts as its release."""
        # The package `packaging` is not there before anything is installed, when the locks are audited.
        clauses = [(operator, _numbers(bound)) for operator, bound in _CLAUSE.findall(self.affected)]
        found = _numbers(version)
        exact = [bound for operator, bound in clauses if operator == "=="]
        below = all(found < bound for operator, bound in clauses if operator == "<")
        above = all(found >= bound for operator, bound in clauses if operator == ">=")
        return found in exact if exact else below and above

    @property
    def remedy(self) -> str:
        """What to install instead, as pip takes it."""
        ends = [(operator, bound) for operator, bound in _CLAUSE.findall(self.affected) if operator != ">="]
        return self.package + ",".join(f"!={bound}" if operator == "==" else f">={bound}" for operator, bound in ends)


def read_advisories() -> list[Advisory]:
    """The table, in its order."""
    return [Advisory(**entry) for entry in tomllib.loads(TABLE.read_text(encoding="utf-8"))["advisory"]]


def refuse_bad_versions() -> None:
    """Raises: UserError: a package has a version that the table refuses."""
    for advisory in read_advisories():
        found = _installed(advisory.package) if advisory.refused else None
        if found is not None and advisory.affects(found):
            first = f"{advisory.package} {found} is installed, and is not imported: {advisory.about} ({advisory.id})"
            also = [advisory.also] if advisory.also else []
            raise UserError(first, f"pip install '{advisory.remedy}'", *also)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """The release of a version without zeros at its end: 2.10.0rc1+cu130 -> (2, 10)."""
    release = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(number) for number in release.group().split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)

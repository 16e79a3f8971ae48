"""Packages with a known advisory: found by their metadata, before anything of them is imported."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
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
    aliases: Sequence[str] = ()

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
    def fixed(self) -> list[str]:
        """The versions without it, as clauses that pip takes."""
        ends = [(operator, bound) for operator, bound in _CLAUSE.findall(self.affected) if operator != ">="]
        return [f"!={bound}" if operator == "==" else f">={bound}" for operator, bound in ends]


def remedy(advisories: Sequence[Advisory], bounds: Sequence[str] = ()) -> str:
    """What to install instead, as pip takes it.

    Args: advisories: of one package. bounds: further clauses of its version, such as ">=2.6.6" and "<2.7".
    """
    clauses = list(dict.fromkeys([*bounds, *(clause for advisory in advisories for clause in advisory.fixed)]))
    highest = max((clause for clause in clauses if clause.startswith(">=")), key=lambda c: _numbers(c[2:]), default="")
    others = [clause for clause in clauses if not clause.startswith(">=")]
    return advisories[0].package + ",".join(filter(None, [highest, *others]))


def read_advisories() -> list[Advisory]:
    """The table, in its order."""
    return [Advisory(**entry) for entry in tomllib.loads(TABLE.read_text(encoding="utf-8"))["advisory"]]


def installed_advisories() -> dict[str, list[Advisory]]:
    """The advisories that concern installed packages, by `NAME VERSION`; the refused ones first. Imports no package."""
    found: dict[str, list[Advisory]] = {}
    for advisory in sorted(read_advisories(), key=lambda advisory: not advisory.refused):
        installed = _installed(advisory.package)
        if installed is not None and advisory.affects(installed):
            found.setdefault(f"{advisory.package} {installed}", []).append(advisory)
    return found


def refuse_bad_versions() -> None:
    """Raises: UserError: a package has a version that the table refuses."""
    for package, advisories in installed_advisories().items():
        worst = advisories[0]
        if worst.refused:
            first = f"{package} is installed, and is not imported: {worst.about} ({worst.id})"
            raise UserError(first, f"pip install '{remedy(advisories)}'", *([worst.also] if worst.also else []))


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

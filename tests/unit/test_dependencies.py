"""The locks, the table of advisories, and the lower bounds of the package."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from dependencies import audit, lock
from trainer.config.versions import Advisory, read_advisories, remedy

LOCKS = [audit.FOLDER / name for name in audit.LOCKS]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def locked(file: Path) -> dict[str, str]:
    """Versions by name, read without the code that is tested."""
    lines = [line.split()[0] for line in file.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def requirements(*extras: str) -> list[Requirement]:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.name)
def test_a_lock_holds_what_the_package_needs_and_nothing_with_an_advisory(file: Path) -> None:
    versions = locked(file)
    for requirement in requirements("dev"):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    assert list(audit.problems(file)) == []
    assert ("triton" in versions) == (file.name == "cuda.txt") == ("+cpu" not in versions["torch"])


def test_the_locks_differ_by_the_build_of_torch_only() -> None:
    cpu, cuda = (set(file.read_text().splitlines()[2:]) for file in LOCKS)
    assert {line.split("==")[0] for line in cpu - cuda} == {"torch"}
    others = {line.split("==")[0] for line in cuda - cpu} - {"torch", "triton"}
    assert all(name.startswith(("nvidia-", "cuda-")) for name in others)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("pytorch-lightning==2.6.3 --hash=sha256:" + "0" * 64, "2.6.3: an upload with malicious code"),
        ("pillow==12.1.0 --hash=sha256:" + "0" * 64, "CVE-2026-25990"),
        ("pillow==13.0.0", "is not NAME==VERSION with a SHA-256"),
        ("numpy==2.4.5 --hash=sha256:" + "0" * 64, "constraints.txt has 2.4.6, the lock has 2.4.5"),
    ],
)
def test_the_audit_finds_what_is_wrong_with_a_lock(
    line: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = line.split("==")[0]
    lines = [line if each.startswith(f"{name}==") else each for each in LOCKS[0].read_text().splitlines()]
    changed = tmp_path / "cpu.txt"
    changed.write_text("\n".join(lines))
    assert audit.main([changed]) == 1
    assert problem in capsys.readouterr().out
    assert audit.main([LOCKS[0]]) == 0


def test_a_lock_is_written_from_what_pip_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of two packages, written and read again."""
    monkeypatch.setattr(lock, "FOLDER", tmp_path)
    monkeypatch.setattr(lock, "REPOSITORY", tmp_path)
    report = [
        {
            "metadata": {"name": name, "version": version},
            "download_info": {"archive_info": {"hashes": {"sha256": digit * 64}}},
        }
        for name, version, digit in [("torch", "2.13.0+cpu", "a"), ("Ruamel_yaml.x", "1.0", "b")]
    ]
    file = lock.write_lock(report)
    assert file.name == "cpu.txt" and locked(file) == {"ruamel-yaml-x": "1.0", "torch": "2.13.0+cpu"}
    assert not [problem for problem in audit.problems(file) if "SHA-256" in problem]


def test_affected_versions_are_those_of_pep_440() -> None:
    releases = ["1.3.3", "1.3.4", "2.6.2", "2.6.3", "2.6.4", "2.9.1", "2.10", "2.10.0", "12.1.0", "14.0.1", "23.0.1"]
    for advisory in read_advisories():
        # packaging's == means all of several clauses, the table's any of them.
        clauses = advisory.affected.split(",") if "==" in advisory.affected else [advisory.affected]
        for release in releases:
            assert advisory.affects(release) == any(SpecifierSet(each).contains(release) for each in clauses)
    assert Advisory("", "torch", "<2.10.0", "").affects("2.9.1+cu130")
    assert not Advisory("", "torch", "<2.10.0", "").affects("2.10.0+cu130")


def test_each_entry_of_the_table_can_be_looked_up_and_acted_on() -> None:
    entries = read_advisories()
    assert len({(entry.id, entry.package) for entry in entries}) == len(entries)
    known = r"CVE-20\d\d-\d{4,}|GHSA(-[23456789cfghjmpqrvwx]{4}){3}|PYSEC-20\d\d-\d+"
    for entry in entries:
        assert all(re.fullmatch(known, name) for name in (entry.id, *entry.aliases)), entry
        assert entry.id not in entry.aliases and "advisory" not in entry.about
        (allowed,) = [Requirement(remedy([entry])).specifier]
        assert not any(entry.affects(clause.version) for clause in allowed if clause.operator == ">="), entry


def test_one_remedy_for_all_advisories_of_a_package() -> None:
    of_torch = [Advisory("", "torch", "<2.9.0", ""), Advisory("", "torch", ">=2.0,<2.13.0", "")]
    assert remedy(of_torch) == "torch>=2.13.0"
    assert remedy(of_torch, [">=2.14", "<3"]) == "torch>=2.14,<3"
    assert remedy([Advisory("", "lightning", "==2.6.2,==2.6.3", "")]) == "lightning!=2.6.2,!=2.6.3"


def test_lower_bounds_have_no_advisory_except_for_what_is_not_called() -> None:
    extras = [name for name in PROJECT["optional-dependencies"] if name != "mlflow"]
    for requirement in requirements(*extras):
        (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
        for advisory in read_advisories():
            if advisory.package == canonicalize_name(requirement.name) and advisory.affects(bound):
                assert advisory.about.endswith("is not called here"), f"{requirement}: {advisory.id}"
                assert not advisory.refused
    sources = [file.read_text() for folder in ("trainer", "tasks") for file in (REPOSITORY / folder).rglob("*.py")]
    assert not [text for text in sources if "jit.script(" in text or "load_from_checkpoint(" in text]


def test_the_tests_run_with_the_locked_versions() -> None:
    """Of what constraints.txt pins: pip has taken the rest within these."""
    versions = locked(LOCKS[0])
    pinned = [line.split("==")[0] for line in (REPOSITORY / "constraints.txt").read_text().splitlines()[1:]]
    installed = {name: Version(importlib.metadata.version(name)).public for name in pinned}
    assert installed == {name: Version(versions[canonicalize_name(name)]).public for name in pinned}

"""Python and the installed packages."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from trainer.config.schema import Config
from trainer.config.versions import Advisory, installed_advisories, remedy
from trainer.errors import EXIT_DONE, counted
from trainer.task import HOME
from trainer.verbs.doctor.child import run_child
from trainer.verbs.doctor.report import Finding
from trainer.world import World

DISTRIBUTION = "hydra-lightning-trainer"
# Imported only by runs that use them.
OPTIONAL = frozenset({"datasets", "deepspeed", "transformers", "wandb"})
# Names that ranks import, and that a file of the current directory would shadow.
IMPORTED = (
    "datasets", "deepspeed", "filelock", "hydra", "matplotlib", "numpy", "omegaconf", "PIL", "psutil", "pydantic",
    "pytorch_lightning", "rich", "safetensors", "sklearn", "torch", "torchmetrics", "trainer", "transformers", "wandb",
    "yaml",
)  # fmt: skip


def check_python(config: Config, world: World) -> Iterator[Finding]:
    """The interpreter is supported."""
    found = f"{platform.python_version()} at {sys.executable}"
    try:
        bounds = SpecifierSet(distribution(DISTRIBUTION).metadata["Requires-Python"] or "")
    except PackageNotFoundError:
        yield Finding("Python", "warning", f"{found}; {DISTRIBUTION} is not installed", "python -m pip install -e .")
        return
    if bounds.contains(platform.python_version(), prereleases=True):
        yield Finding("Python", "ok", found)
    else:
        yield Finding("Python", "failure", f"{found}; supported: {bounds}", "create another environment")


def check_packages(config: Config, world: World) -> Iterator[Finding]:
    """Installed versions are within our bounds, and none of them has an advisory, of which a run refuses some."""
    advisories = installed_advisories()
    yield from (_advised(package, found) for package, found in advisories.items())
    reported = {package.partition(" ")[0] for package in advisories}
    try:
        texts = distribution(DISTRIBUTION).requires or []
    except PackageNotFoundError:
        yield Finding("packages", "warning", "the bounds are unknown", "python -m pip install -e .")
        return
    wanted = [Requirement(text) for text in texts]
    core = [requirement for requirement in wanted if requirement.marker is None or requirement.marker.evaluate()]
    misfits = [finding for requirement in core for finding in _misfit(requirement) if requirement.name not in reported]
    yield from misfits
    if not advisories and not misfits:
        yield Finding("packages", "ok", f"{len(core)} within bounds, none with an advisory of our table")


def _advised(package: str, advisories: Sequence[Advisory]) -> Finding:
    """What a run refuses is a failure; anything else in the table is worth an update. Args: package: NAME VERSION."""
    worst, *others = advisories
    says = "is refused" if worst.refused else "has an advisory"
    more = f" and {counted(len(others), 'other')}" if others else ""
    found = f"{package} {says}: {worst.about} ({worst.id}){more}"
    bounds = [str(clause) for clause in _bounds_of(worst.package)]
    update = f"python -m pip install --upgrade '{remedy(advisories, bounds)}'"
    status = "failure" if worst.refused else "warning"
    return Finding("packages", status, found, "; ".join(filter(None, [update, worst.also])))


def _bounds_of(name: str) -> SpecifierSet:
    try:
        requirements = [Requirement(text) for text in distribution(DISTRIBUTION).requires or []]
    except PackageNotFoundError:
        return SpecifierSet()
    return next((item.specifier for item in requirements if item.name == name), SpecifierSet())


def _misfit(requirement: Requirement) -> Iterator[Finding]:
    installed = _version(requirement.name)
    remedy = f"python -m pip install '{requirement.name}{requirement.specifier}'"
    if installed is None:
        status = "warning" if requirement.name in OPTIONAL else "failure"
        yield Finding("packages", status, f"{requirement.name} is not installed", remedy)
    elif not requirement.specifier.contains(installed, prereleases=True):
        found = f"{requirement.name} {installed} is outside {requirement.specifier}"
        yield Finding("packages", "failure", found, remedy)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check_shadows(config: Config, world: World) -> Iterator[Finding]:
    """No file of the current directory, which `python -m` searches first, shadows a package."""
    here = Path.cwd()
    if here == HOME:
        yield Finding("current directory", "ok", "the repository")
        return
    shadows = [
        path for name in IMPORTED for path in (here / f"{name}.py", here / name / "__init__.py") if path.exists()
    ]
    for path in shadows:
        name = path.stem if path.stem != "__init__" else path.parent.name
        yield Finding(
            "current directory", "failure", f"{path} is imported instead of {name}", "rename it, or start elsewhere"
        )
    for name, instead in (("tasks", "plugins=[FOLDER]"), ("conf", "--config-dir=conf")):
        if (here / name).is_dir():
            found = f"{here / name} is not used: the project has a folder of that name"
            yield Finding("current directory", "warning", found, f"name yours with {instead}")
            shadows.append(here / name)
    if not shadows:
        yield Finding("current directory", "ok", f"{here} shadows nothing")


def check_torchvision(config: Config, world: World) -> Iterator[Finding]:
    """An installed torchvision fits torch: transformers imports it, and fails where it does not."""
    if importlib.util.find_spec("torchvision") is None:
        yield Finding("torchvision", "skipped", "not installed, not needed")
        return
    child = run_child([sys.executable, "-c", "import torchvision"])
    if child.code == EXIT_DONE:
        yield Finding("torchvision", "ok", str(_version("torchvision")))
        return
    remedy = "python -m pip uninstall torchvision, or install the build for this torch"
    yield Finding("torchvision", "failure", f"importing it fails: {child.error_line}", remedy)

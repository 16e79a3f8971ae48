"""Python and the installed packages."""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from trainer.config.schema import Config
from trainer.errors import EXIT_DONE
from trainer.task import HOME
from trainer.verbs.doctor.child import run_child
from trainer.verbs.doctor.report import Finding
from trainer.world import World

DISTRIBUTION = "hydra-lightning-trainer"
# Checked in addition to the bounds, which an older installation may not have.
BANNED = {
    "lightning==2.6.2": "a malicious upload",
    "lightning==2.6.3": "a malicious upload",
    "pytorch-lightning==2.6.2": "a malicious upload",
    "pytorch-lightning==2.6.3": "a malicious upload",
    "torch<2.10": "loads weights unsafely",
    "transformers<5.3": "known to be unsafe",
    "hydra-core<1.3.6": "known to be unsafe",
}
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
    """Installed versions are within our bounds, and none of them is banned."""
    banned = list(_banned())
    yield from banned
    reported = {finding.found.partition(" ")[0] for finding in banned}
    try:
        texts = distribution(DISTRIBUTION).requires or []
    except PackageNotFoundError:
        yield Finding("packages", "warning", "the bounds are unknown", "python -m pip install -e .")
        return
    wanted = [Requirement(text) for text in texts]
    core = [requirement for requirement in wanted if requirement.marker is None or requirement.marker.evaluate()]
    misfits = [finding for requirement in core for finding in _misfit(requirement) if requirement.name not in reported]
    yield from misfits
    if not banned and not misfits:
        yield Finding("packages", "ok", f"{len(core)} within bounds")


def _banned() -> Iterator[Finding]:
    for text, reason in BANNED.items():
        requirement = Requirement(text)
        installed = _version(requirement.name)
        if installed is not None and requirement.specifier.contains(installed, prereleases=True):
            found = f"{requirement.name} {installed} is banned: {reason}"
            remedy = f"python -m pip install --upgrade {_bounds_of(requirement.name)}"
            if requirement.name == "lightning":
                remedy = "python -m pip uninstall lightning, and replace the keys on this machine: they may be stolen"
            yield Finding("packages", "failure", found, remedy)


def _bounds_of(name: str) -> str:
    try:
        requirements = [Requirement(text) for text in distribution(DISTRIBUTION).requires or []]
    except PackageNotFoundError:
        return name
    return next((f"'{item.name}{item.specifier}'" for item in requirements if item.name == name), name)


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

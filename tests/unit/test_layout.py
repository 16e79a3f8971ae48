"""Who may import whom, that no import runs in a circle, and the trunk from the command to the training step."""

import ast
import json
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPOSITORY
from warm import run_warm

# Each part of trainer/ and the parts that it may import, also inside functions and for type checking. A part is a
# module at the root or a folder; what is missing here may not be imported.
CONTRACTS = {"errors", "clock", "network", "world", "collectives", "task", "config", "run", "parts"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "generators": set(),
    "clock": set(),
    "network": set(),
    "search_path": set(),
    "world": {"errors"},
    "collectives": {"errors"},
    "config": {"errors", "world", "task"},
    "parts": {"errors", "config"},
    "own_network": {"errors", "config", "parts"},
    "own_metrics": {"errors", "config", "parts"},
    # `estimate`, `inference`, `data` and `module` only for the types of what a task builds.
    "task": {"errors", "config", "estimate", "inference", "data", "module"},
    "run": {"errors", "config", "task"},
    "report": {"version", "errors", "run"},
    "bench": {"errors", "run"},
    "estimate": {"config"},
    "export": {"errors", "config", "run", "inference", "data"},
    # Neither `engine` nor `module`: what is served is an export, without Lightning. `data` for the formats of images.
    "serve": {"version", "errors", "config", "run", "data", "export"},
    "deploy": {"errors", "run", "export"},
    "optim": {"errors", "config", "parts"},
    # `data` only for the type and the size of what a model is evaluated on.
    "inference": {"errors", "config", "run", "data"},
    "data": {"errors", "clock", "network", "config", "run", "estimate", "parts"},
    "network_strategy": set(),
    "module": {"clock", "collectives", "config", "data", "network_strategy", "optim", "own_metrics"},
    "callbacks": {"errors", "config", "module", "parts"},
    "faults": {"errors", "collectives", "config", "run", "data", "module", "network_strategy", "clock", "world"},
    "launch": {*CONTRACTS, "faults"},
    "strategies": {*CONTRACTS, "module", "network_strategy"},
    "checkpoint": {*CONTRACTS, "faults", "data", "generators", "module", "observe", "optim"},
    "observe": {*CONTRACTS, "data", "module"},
    "profile": {"errors", "clock", "config", "run"},
    "engine": {*CONTRACTS, "callbacks", "faults", "data", "module", "strategies", "checkpoint", "observe", "report"}
    | {"network_strategy", "profile"},
    # `module` for the loops that `bench` compares with the trainer's.
    "verbs": {*CONTRACTS, "data", "module", "faults", "launch", "engine", "estimate", "inference", "export"}
    | {"serve", "deploy", "optim", "strategies", "checkpoint", "observe", "report", "bench"},
    "cli": {"config", "version", "errors", "task", "verbs"},
    "rank": {"errors", "search_path", "faults", "launch", "verbs"},
    "__main__": {"search_path", "cli", "faults"},
    "api": {*CONTRACTS, "faults", "generators", "inference", "launch", "report", "verbs"},
    "__init__": {"version", "errors", "api"},
}
TASKS_MAY_IMPORT = {
    *CONTRACTS, "data", "module", "inference", "observe", "estimate", "strategies", "own_network", "own_metrics",
} - {"world"}  # fmt: skip

# What an example may import of the project besides itself: the public names, generated data sets, and the middleware
# that any service needs.
EXAMPLES_MAY_IMPORT = {
    "trainer.__init__", "trainer.export.__init__", "trainer.serve.unread", "tasks.bert.intents", "examples.web",
}  # fmt: skip
# Folders of an example that are a task of the trainer (docs/adding_a_task.md).
EXAMPLE_TASKS = ("examples.recommendation.two_tower.",)

Imports = dict[str, set[str]]


def module_files(folder: str) -> dict[str, Path]:
    """Files below a folder by the name of their module."""
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    return {str(f.relative_to(REPOSITORY).with_suffix("")).replace("/", "."): f for f in files}


def imports_between(files: dict[str, Path]) -> Imports:
    """Which of the modules each one imports, anywhere in its text."""
    found: Imports = {}
    for name, file in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            targets = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                targets = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            # cli names the modules of its verbs in text.
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_verb":
                targets = [f"trainer.verbs.{ast.literal_eval(node.args[0])}"]
            for target in targets:
                for module in (target, f"{target}.__init__"):
                    if module in files and module != name:
                        found[name].add(module)
    return found


def part_of(module: str) -> str:
    return module.split(".")[1]


def forbidden(imports: Imports) -> list[str]:
    """Imports that the list above does not allow."""
    return [
        f"{name} -> {target}"
        for name, targets in imports.items()
        for target in sorted(targets)
        if not is_allowed(name, target)
    ]


def is_allowed(name: str, target: str) -> bool:
    inside = name.split(".")[:2] == target.split(".")[:2]
    if name.startswith("examples."):
        is_task = name.startswith(EXAMPLE_TASKS) and target.startswith("trainer.")
        return inside or target in EXAMPLES_MAY_IMPORT or (is_task and part_of(target) in TASKS_MAY_IMPORT)
    if target.startswith("examples."):
        return False
    if target.startswith("tasks."):
        return inside
    if name.startswith("tasks."):
        return part_of(target) in TASKS_MAY_IMPORT
    return inside or part_of(target) in ALLOWED[part_of(name)]


def circle(imports: Imports) -> list[str]:
    """The modules of one circle, or nothing."""
    try:
        TopologicalSorter({name: sorted(targets) for name, targets in imports.items()}).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def imports() -> Imports:
    return imports_between({**module_files("trainer"), **module_files("tasks"), **module_files("examples")})


def test_imports_run_one_way(imports: Imports) -> None:
    assert forbidden(imports) == []
    assert set(ALLOWED) == {part_of(name) for name in imports if name.startswith("trainer.")}


def test_there_is_no_circle(imports: Imports) -> None:
    assert circle(imports) == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("trainer.engine.train", "trainer.verbs.fit"),
        ("trainer.launch.agent", "trainer.verbs.fit"),
        ("trainer.module", "trainer.engine.build"),
        ("trainer.engine.train", "tasks.cnn.module"),
        ("tasks.cnn.module", "tasks.bert.module"),
        ("tasks.cnn.module", "trainer.engine.train"),
        ("examples.customer_service.data", "trainer.errors"),
        ("examples.customer_service.data", "tasks.bert.data"),
        ("examples.customer_service.data", "examples.recommendation.data"),
        ("trainer.verbs.fit", "examples.customer_service.data"),
    ],
)
def test_a_planted_import_is_found(imports: Imports, name: str, target: str) -> None:
    planted = {**imports, name: {*imports[name], target}}
    assert f"{name} -> {target}" in forbidden(planted)


def test_a_planted_circle_is_found(imports: Imports) -> None:
    planted = {**imports, "trainer.errors": {"trainer.cli"}, "trainer.cli": {"trainer.errors"}}
    assert {"trainer.errors", "trainer.cli"} <= set(circle(planted))


TRACED_RUN = """
import atexit, json, sys

root, trunk = sys.argv[1], json.loads(sys.argv[2])
entered, files, from_below = [], [], []

def profile(frame, event, argument):
    # A class body is a call too; only functions are optimised code.
    if event != "call" or not frame.f_code.co_flags & 1 or not frame.f_code.co_filename.startswith(root):
        return
    file = frame.f_code.co_filename[len(root) + 1 :]
    if file not in files and file.startswith(("trainer/", "tasks/")):
        files.append(file)
    if file not in trunk:
        return
    if file not in entered:
        entered.append(file)
    caller = frame.f_back
    while caller is not None:
        above = caller.f_code.co_filename[len(root) + 1 :] if caller.f_code.co_filename.startswith(root) else ""
        if above in trunk:
            if trunk.index(above) > trunk.index(file):
                from_below.append(f"{above}:{caller.f_code.co_name} calls {file}:{frame.f_code.co_name}")
            break
        caller = caller.f_back

from trainer.__main__ import script
sys.argv = ["trainer", "task=bert", "debug=smoke", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]

def write():
    sys.setprofile(None)
    print(json.dumps({"entered": entered, "files": files, "from_below": sorted(set(from_below))}))

atexit.register(write)
sys.setprofile(profile)
script()
"""


def documented_trunk() -> list[str]:
    """The numbered list of files in the page."""
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\d+\. `([\w/]+\.py)`", page, re.MULTILINE)


@pytest.mark.slow
def test_a_run_enters_the_trunk_as_the_page_lists_it(tmp_path: Path) -> None:
    trunk = documented_trunk()
    assert 1 < len(trunk) <= 12
    (tmp_path / "traced.py").write_text(TRACED_RUN)
    done = run_warm(["traced.py", str(REPOSITORY), json.dumps(trunk)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    traced = json.loads(done.stdout.strip().split("\n")[-1])
    assert traced["entered"] == trunk
    assert traced["from_below"] == []
    print(f"{len(traced['files'])} files of the project are entered")

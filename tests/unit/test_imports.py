"""What is imported when: torch only after validation, and big packages only by a run that uses them."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS_WORDS

HEAVY = ("torch", "pytorch_lightning", "transformers", "datasets", "wandb", "deepspeed", "sklearn", "matplotlib")


def modules_after(code: str, directory: Path) -> set[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=directory, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.strip().split("\n")[-1]))


@pytest.mark.parametrize(
    "words", [["--help"], [*SPIRALS_WORDS, "--cfg", "job"], [*SPIRALS_WORDS, "optimizer.lr=-1"]], ids=str
)
def test_nothing_heavy_before_validation(words: list[str], tmp_path: Path) -> None:
    loaded = modules_after(f"from trainer.cli import main\nmain({words!r})", tmp_path)
    assert [name for name in HEAVY if name in loaded] == []


def test_help_is_quick(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainer", "--help"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)  # compiles the byte code
    before = os.times()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    after = os.times()
    spent_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent_s < 0.6
    assert "task=" in done.stdout
    assert "optimizer=adam adam_gan adamw muon sgd" in done.stdout


def test_a_run_without_a_logger_needs_none_of_the_big_packages(tmp_path: Path) -> None:
    """They might as well not be installed: importing one of them is an error here."""
    blocked = ("datasets", "wandb", "deepspeed", "transformers")
    code = f"""
import importlib.metadata as metadata
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name)
def without(ask):
    def answer(name):
        if name in {blocked!r}:
            raise metadata.PackageNotFoundError(name)
        return ask(name)
    return answer
sys.meta_path.insert(0, Blocked())
metadata.version, metadata.distribution = without(metadata.version), without(metadata.distribution)
from trainer.cli import main
assert main(["task=cnn", "logger=none", "debug=smoke", "trainer.accelerator=cpu"]) == 0
"""
    loaded = modules_after(code, tmp_path)
    assert "torch" in loaded


def imports_of(folder: Path) -> set[tuple[str, str]]:
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {(str(file.relative_to(REPOSITORY)), name) for name in names}
    return found


def test_imports_run_one_way() -> None:
    engine = {(file, name) for file, name in imports_of(REPOSITORY / "trainer") if name.partition(".")[0] == "tasks"}
    assert engine == set()
    for task in (REPOSITORY / "tasks").iterdir():
        if not task.is_dir():
            continue
        others = {n for _, n in imports_of(task) if n.startswith("tasks.") and not n.startswith(f"tasks.{task.name}")}
        assert others == set(), task.name

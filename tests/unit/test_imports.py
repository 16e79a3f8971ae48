"""What is imported when: torch only after validation, and big packages only by a run that uses them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS

HEAVY = ("torch", "pytorch_lightning", "transformers", "datasets", "wandb", "deepspeed", "sklearn", "matplotlib")


def modules_after(code: str, directory: Path) -> set[str]:
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=directory, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.strip().split("\n")[-1]))


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["help", "fit"],
        ["predict", "--help"],
        ["completion", "words", "tr"],
        ["eval"],
        ["sync", "run=nowhere"],
        ["dashboard", "run=nowhere"],
        [*SPIRALS_WORDS, "--cfg", "job"],
        [*SPIRALS_WORDS, "optimizer.lr=-1"],
        [*SPIRALS_WORDS, "optimizer.lrr=1"],
    ],
    ids=lambda words: " ".join(words[-2:]),
)
def test_nothing_heavy_before_validation(words: list[str], tmp_path: Path) -> None:
    loaded = modules_after(f"from trainer.cli import main\nmain({words!r})", tmp_path)
    assert [name for name in HEAVY if name in loaded] == []


def test_the_overview_composes_nothing(tmp_path: Path) -> None:
    """Hydra and pydantic's models of tasks take most of the time before a run; --help needs neither Hydra nor tasks."""
    loaded = modules_after("from trainer.cli import main\nmain(['--help'])", tmp_path)
    assert [name for name in (*HEAVY, "hydra", "omegaconf", "tasks") if name in loaded] == []


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

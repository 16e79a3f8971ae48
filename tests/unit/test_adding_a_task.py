"""docs/adding_a_task.md, followed to the letter in an empty directory."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS, CommandLine

PAGE = (REPOSITORY / "docs" / "adding_a_task.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`spirals/([\w/.]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.strip().split("\n")]


@pytest.fixture
def pasted(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / "spirals" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "spirals" / "__init__.py").touch()
    return tmp_path


def test_the_page_shows_the_task_that_the_tests_train() -> None:
    names = {str(file.relative_to(SPIRALS)) for kind in ("*.py", "*.yaml") for file in SPIRALS.rglob(kind)}
    assert set(FILES) == names - {"__init__.py"}
    for name, text in FILES.items():
        assert text == (SPIRALS / name).read_text(), name


def test_its_number_of_lines_is_true() -> None:
    (stated,) = re.findall(r"^(\d+) lines of Python", PAGE, re.MULTILINE)
    assert int(stated) == sum(text.count("\n") for name, text in FILES.items() if name.endswith(".py"))


def test_its_commands_run(pasted: Path, command_line: CommandLine) -> None:
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        done = command_line(*shlex.split(command.removeprefix("python -m trainer ")), "trainer.accelerator=cpu")
        assert done.returncode == 0, done.stderr
    (pasted / "points.json").write_text("[[0.1, 0.2], [0.3, -0.4]]")
    (run,) = pasted.glob("outputs/spirals/mlp-points-*")
    plugin = "plugins=[spirals]"
    done = command_line("predict", plugin, f"run={run}", "input=points.json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["spiral"] in (0, 1) for line in done.stdout.strip().split("\n")] == [True, True]

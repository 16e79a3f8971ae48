"""The commands of docs/serving.md from training to a load test, in their order, for each task."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY
from served import TRAINED, served

from trainer.cli import main

PAGE = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
(BLOCK,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.removeprefix("python -m trainer ") for line in BLOCK.splitlines()]
# What makes a command short, by its first words. Within one second, 4 requests a second are not sustained where one
# answer comes 40 ms later than another, as on a busy machine.
QUICK = {"bench inference": ["calls=1", "batch=2"], "bench serve": ["rates=4,8", "seconds=3"]}


def test_the_commands_are_those_of_the_way() -> None:
    verbs = [command.partition(" run=")[0].partition(" url=")[0] for command in COMMANDS]
    assert verbs == ["task=bert run.name=NAME", "eval", "export", "bench inference", "serve", "bench serve"]


@pytest.mark.slow
@pytest.mark.parametrize("task", TRAINED)
def test_the_commands_run(task: str, in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.bench.rounds.FEWEST_ROUNDS", 2)
    train, evaluate, export, inference, serve, load = (command.replace("bert", task) for command in COMMANDS)
    more = [word for word in TRAINED[task] if not word.startswith("task=")]
    assert main([*shlex.split(train), *more]) == 0
    for command in (evaluate, export, inference):
        quick = QUICK.get(command.partition(" run=")[0], [])
        assert main([*shlex.split(command), *quick]) == 0, command
    run = Path(f"outputs/{task}/NAME")
    assert serve == f"serve run={run}"
    with served(run) as url:
        assert main([*shlex.split(load.replace("http://127.0.0.1:8000", url)), *QUICK["bench serve"], "out=load"]) == 0
    result = json.loads(Path("load/result.json").read_text())
    assert result["facts"]["model"]["task"] == task
    assert result["highest"] is not None, result["rows"]
    assert all(row["failed"] == 0 for row in result["rows"]), result["rows"]
    assert (run / "deploy" / "kubernetes" / "deployment.yaml").exists()
    (bench,) = Path("outputs/bench").glob("inference-*/result.md")
    assert "onnx" in bench.read_text()

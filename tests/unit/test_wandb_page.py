"""Every command of docs/wandb.md runs as it stands there, against a server on loopback."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from wandb_server import WandbServer

from trainer.cli import main

PAGE = (REPOSITORY / "docs" / "wandb.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.removeprefix("python -m trainer ") for block in BLOCKS for line in block.split("\n") if line]


def test_the_commands_upload_a_run_and_save_its_dashboard(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (name,) = set(re.findall(r"run=(\S+)", "\n".join(COMMANDS)))
    run = in_directory / name
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"status": "finished", "attempts": [], "wandb_id": "0badcafe"}))
    (run / "config.yaml").write_text("monitor: {metric: val/accuracy, mode: max}\n")
    lines = [{"step": 10, "train/loss": 2.0}, {"step": 20, "train/loss": 1.0}, {"step": 20, "val/accuracy": 0.5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with WandbServer() as server, server.client(monkeypatch):
        for command in COMMANDS:
            assert main(shlex.split(command)) == 0, command
            assert server.url in capsys.readouterr().out
    assert [row["_step"] for row in server.runs["0badcafe"].history] == [10, 20]
    assert server.runs["0badcafe"].summary["val/accuracy"] == {"max": 0.5, "last": 0.5}
    assert [view["displayName"] for view in server.views.values()] == [f"trainer: {run.name}", "trainer: trainer"]


def test_the_agent_starts_the_command_of_the_sweep(in_directory: Path, capsys: pytest.CaptureFixture) -> None:
    """With wandb's own expansion of the file, up to the process that it starts."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    sweep = yaml.safe_load(block)
    assert sweep["parameters"].keys() == {"optimizer.lr", "batch.global_size"}
    chosen = {"optimizer.lr": {"value": 0.0012345}, "batch.global_size": {"value": 64}}
    words = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    command = create_sweep_command(sweep["command"])
    assert command[:4] == ["${env}", "${interpreter}", "-m", "trainer"] and command[-1] == "${args_no_hyphens}"
    # What the search compares is logged under exactly this name.
    assert sweep["metric"]["name"] == "val/loss"
    assert main([*command[4:-1], *words, "--cfg", "job"]) == 0
    composed = yaml.safe_load(capsys.readouterr().out)
    assert (composed["optimizer"]["lr"], composed["batch"]["global_size"]) == (0.0012345, 64)

"""The workspace of a run has a panel for each metric that the run logs, and names no other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SPIRALS_WORDS
from wandb_server import WandbServer

from trainer.cli import main
from trainer.run.record import Record


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, and a second one that has trained on two GPUs."""
    directory = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main([*SPIRALS_WORDS, "trainer.max_epochs=1", "run.name=one"]) == 0
    root = directory / "outputs"
    two = root / "spirals" / "two"
    two.mkdir()
    for name in ("run.json", "config.yaml"):
        (two / name).write_text((root / "spirals" / "one" / name).read_text())
    ranks = {"perf/step_time_s_rank_0": 0.1, "perf/step_time_s_rank_1": 0.2, "perf/allocated_memory_gib": 3.0}
    (two / "metrics.jsonl").write_text(json.dumps({"step": 10, **ranks}) + "\n")
    return root


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


def panels(file: Path) -> dict[str, dict[str, Any]]:
    """Settings of each panel by its title."""
    sections = json.loads(file.read_text())["spec"]["section"]["panelBankConfig"]["sections"]
    found = [panel["config"] for section in sections for panel in section["panels"]]
    titles = [each["chartTitle"] for each in found]
    assert len(titles) == len(set(titles))
    return dict(zip(titles, found, strict=True))


def logged(run: Path) -> set[str]:
    names = {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    return names - {"step", "epoch"}


def test_panels_are_of_the_metrics_that_the_run_logs(
    outputs: Path, offline: None, capsys: pytest.CaptureFixture
) -> None:
    run = outputs / "spirals" / "one"
    assert main(["dashboard", f"run={run}"]) == 0
    assert capsys.readouterr().out == f"{run}/dashboard.json\nnot saved on a server: no W&B key\n"
    found = panels(run / "dashboard.json")
    shown = [name for panel in found.values() for name in panel["metrics"]]
    assert len(shown) == len(set(shown))
    assert set(shown) == logged(run)
    assert found["loss"]["metrics"] == ["train/loss", "val/loss"]
    assert found["time by state"]["plotType"] == "stacked-area"
    assert {panel["xAxis"] for panel in found.values()} == {"_step"}
    filters = json.loads((run / "dashboard.json").read_text())["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert [each["value"] for each in filters] == [Record(run).read()["wandb_id"]]


def test_a_project_has_the_metrics_of_all_its_runs(outputs: Path, offline: None) -> None:
    assert main(["dashboard", "project=trainer", f"root={outputs}"]) == 0
    found = panels(Path("dashboard-trainer.json"))
    shown = {name for panel in found.values() for name in panel["metrics"]}
    assert shown == logged(outputs / "spirals" / "one") | logged(outputs / "spirals" / "two")
    by_rank = found["perf/step_time_s by rank"]
    assert by_rank["metrics"] == ["perf/step_time_s_rank_0", "perf/step_time_s_rank_1"]


def test_a_second_call_replaces_the_workspace(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = outputs / "spirals" / "two"
    with WandbServer() as server, server.client(monkeypatch):
        for _ in range(2):
            assert main(["dashboard", f"run={run}"]) == 0
        (view,) = server.views.values()
    written = json.loads((run / "dashboard.json").read_text())
    assert written["view"]["url"] in capsys.readouterr().out
    assert written["view"]["url"].startswith(f"{server.url}/loopback/trainer")
    assert json.loads(view["spec"])["section"]["panelBankConfig"].keys() == (
        written["spec"]["section"]["panelBankConfig"].keys()
    )
    assert (view["displayName"], view["type"]) == ("trainer: two", "project-view")


def test_user_errors(
    outputs: Path, offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def message(*words: str) -> str:
        assert main(["dashboard", *words]) == 2
        error = capsys.readouterr().err
        assert 1 <= len(error.strip().split("\n")) <= 3
        return error

    run = f"run={outputs / 'spirals' / 'one'}"
    assert "needs run=DIR, or project=NAME" in message()
    assert "needs run=DIR, or project=NAME" in message(run, "project=trainer")
    assert "has an effect only with project" in message(run, "root=x")
    assert "given twice" in message(run, run)
    assert "did you mean project?" in message("projct=x")
    assert "no such directory" in message("run=nowhere")
    assert "no run below root" in message("project=other", f"root={outputs}")
    Path("dashboard-trainer.json").write_text("{")
    assert "damaged" in message("project=trainer", f"root={outputs}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'hydra-lightning-trainer[dashboard]'" in message(run)

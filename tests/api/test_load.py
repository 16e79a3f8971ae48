"""trainer.load, evaluate and predict on a small run; tests/tasks compares each task's outputs with those of eval."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SPIRALS_WORDS
from safetensors.torch import load_file

import trainer
from trainer.cli import main

POINTS = [[0.1 * number, 1.0 - 0.2 * number] for number in range(7)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["trainer.max_epochs=1", f"run.root={tmp_path_factory.mktemp('load')}", "data.num_test=50"]
    return trainer.fit(*SPIRALS_WORDS, *words).run_dir


def test_outputs_are_those_of_the_network_in_batches(run: Path) -> None:
    model = trainer.load(run, device="cpu")
    state = load_file(run / "model.safetensors")
    hidden = (torch.tensor(POINTS) @ state["model.0.weight"].T + state["model.0.bias"]).tanh()
    expected = hidden @ state["model.3.weight"].T + state["model.3.bias"]
    for size in (None, 1, 3):
        torch.testing.assert_close(model.outputs(POINTS, batch_size=size), expected)
        assert model(POINTS, batch_size=size) == [{"spiral": int(row.argmax())} for row in expected]
    assert model([]) == []
    half = trainer.load(str(run), device=torch.device("cpu"), precision="bf16")
    assert half.config.trainer.precision == "bf16-mixed"
    assert not torch.equal(half.outputs(POINTS), model.outputs(POINTS))
    torch.testing.assert_close(half.outputs(POINTS), model.outputs(POINTS), atol=0.05, rtol=0.05)


def test_generators_are_left_alone(run: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    trainer.load(run)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.random() == before[1]


@pytest.mark.slow
def test_inference_of_no_task_imports_lightning() -> None:
    code = """
import sys
import trainer
assert not [name for name in ("torch", "hydra", "pandas", "pydantic") if name in sys.modules]
from trainer.task import find_tasks
import importlib
for task in find_tasks().values():
    importlib.import_module(task.inference.partition(":")[0])
import trainer.api.trained, trainer.api.tables
print([name for name in sys.modules if "lightning" in name])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_evaluate_gives_what_the_verb_writes(run: Path) -> None:
    metrics = trainer.evaluate(run)
    assert metrics == json.loads((run / "eval.json").read_text())
    assert {"val/loss", "test/accuracy"} <= set(metrics)
    two = trainer.evaluate(run, "trainer.devices=2")
    assert two == pytest.approx(metrics, rel=1e-9)
    assert trainer.evaluate(run, "checkpoint=last").keys() == metrics.keys()


def test_predict_takes_the_arguments_of_the_task(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "points.json"
    file.write_text(json.dumps(POINTS))
    assert trainer.predict(run, input=file) is None
    printed = capsys.readouterr().out
    assert [json.loads(line) for line in printed.splitlines()] == trainer.load(run)(POINTS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: trainer.load(run / "nowhere"), "not a run directory"),
        (lambda run: trainer.load(run, device="cuda:99"), "device=cuda:99: "),
        (lambda run: trainer.load(run, device="tpux"), "device=tpux: "),
        (lambda run: trainer.load(run, precision="8"), "trainer.precision=8: "),
        (lambda run: trainer.load(run, "optimizer.lr=1"), "predict would ignore it"),
        (lambda run: trainer.load(run)(POINTS, batch_size=0), "batch_size=0: at least 1"),
        (lambda run: trainer.load(run).outputs([]), "inputs: there are none"),
        (lambda run: trainer.evaluate(run, "checkpoint=none"), "checkpoint=none"),
        (lambda run: trainer.evaluate(run / "nowhere"), "not a run directory"),
        (lambda run: trainer.predict(run, input="nowhere.json"), "input=nowhere.json: "),
        (lambda run: trainer.predict(run, inputs="x"), "did you mean input"),
    ],
)
def test_mistakes_are_user_errors(run: Path, call: Any, message: str) -> None:
    with pytest.raises(trainer.UserError) as caught:
        call(run)
    assert message in str(caught.value)
    assert len(caught.value.lines) <= 3


def test_an_unfinished_run_has_no_model_yet(run: Path, tmp_path: Path) -> None:
    for name in ("run.json", "config.yaml"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(trainer.UserError, match=r"no model\.safetensors yet"):
        trainer.load(tmp_path)
    assert main(["predict", f"run={tmp_path}", "input=x"]) == 2

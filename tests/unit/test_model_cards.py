"""The Python blocks of a model card, run as they stand, for every task."""

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import TRAINED, exported_run

import trainer
from trainer.cli import main

pytestmark = pytest.mark.slow

INPUTS: dict[str, Any] = {
    "cnn": np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8),
    "bert": ["where is my order", "I want my money back", "hello"],
    "dcgan": range(5),
}


@pytest.mark.parametrize("task", TRAINED)
def test_the_snippets_of_the_card_load_the_model(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported_run(task, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["export", f"run={run}", "format=onnx,safetensors", "deploy=hub"]) == 0
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / task).symlink_to(run / "deploy" / "hub")
    monkeypatch.chdir(hub)
    capsys.readouterr()
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (run / "deploy" / "hub" / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2 + (task == "bert"), "an export, weights alone, and transformers for texts"
    printed: list[str] = []
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        printed.append(capsys.readouterr().out)
        assert printed[-1].strip(), f"a block shows what it gives:\n{block}"
    model = trainer.load(run, device="cpu")
    expected = model.outputs(INPUTS[task]).numpy()
    np.testing.assert_allclose(names["model"].outputs(INPUTS[task]), expected, atol=1e-4)
    shapes = {tuple(tensor.shape) for tensor in model.network.state_dict().values()}
    assert shapes in [set(found.values()) for text in printed if isinstance(found := parsed(text), dict)]


def parsed(text: str) -> Any:
    """The last line that a block prints, where that is a literal."""
    try:
        return ast.literal_eval(text.splitlines()[-1])
    except (SyntaxError, ValueError):
        return None

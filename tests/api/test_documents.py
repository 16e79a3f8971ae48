"""Every Python block of the documents runs, in order, and the notebook runs from its first cell to its last."""

import re
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY
from nbclient import NotebookClient
from PIL import Image

import trainer

NOTEBOOK = REPOSITORY / "examples" / "quickstart.ipynb"


def blocks_of(document: str) -> list[str]:
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/python.md", "docs/own_parts.md"])
def test_blocks_run(document: str, in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    Image.new("L", (8, 8)).save("scan.png")
    names: dict[str, object] = {}
    for block in blocks_of(document):
        exec(compile(block, document, "exec"), names)


def test_every_public_name_is_shown() -> None:
    shown = "".join(blocks_of("docs/python.md")) + (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in trainer.__all__ if f"trainer.{name}" not in shown] == []


@pytest.mark.slow
def test_the_notebook_runs_and_its_outputs_are_of_today(tmp_path: Path) -> None:
    stored = nbformat.read(NOTEBOOK, 4)
    fresh = nbformat.read(NOTEBOOK, 4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(fresh, timeout=240, kernel_name="python3", coalesce_streams=True, resources=place).execute()
    for before, after in zip(stored.cells, fresh.cells, strict=True):
        if before.cell_type == "code":
            assert kinds(after) == kinds(before), before.source
    training = fresh.cells[1].outputs
    assert re.search(r"90/90  epoch 2  loss", training[1].data["text/plain"])
    assert 'value="90" max="90"' in training[1].data["text/html"]
    printed = "".join(output.get("text", "") for output in training)
    assert "epoch 2  step 90  train/loss" in printed
    assert "\x1b" not in printed
    names = list(tmp_path.iterdir())
    assert [name.name for name in names] == ["outputs"]


def test_the_notebook_shows_no_path_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(home|work|tmp|root|usr|Users)/", text)


def kinds(cell: nbformat.NotebookNode) -> list[tuple[str, tuple[str, ...]]]:
    """The outputs of a cell by type and media types."""
    return [(each.output_type, tuple(sorted(each.get("data", {})))) for each in cell.outputs]

"""A model directory of somebody else through plan, doctor and a sweep: nothing executes, and none of them breaks."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from foreign import Place, check_refused

from trainer.cli import main

BERT = ["task=bert", "model=minilm", "logger=none", "trainer.accelerator=cpu"]
# JSON, since a table folds its texts.
DOCTOR = ["doctor", "--json"]


def model(place: Place, **config: Any) -> Path:
    folder = place.directory / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def imports_a_package(place: Place) -> str:
    package = place.directory / "innocent"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(f"import os\nos.mknod({str(place.marker)!r})\n")
    return "package://innocent.inner/model"


def names_other_weights(place: Place) -> str:
    model(place, transformers_weights="../outside/victim")
    return "model"


def is_pickled(place: Place) -> str:
    folder = model(place)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(place.payload()))
    return "model"


def has_another_shape(place: Place) -> str:
    """Sizes that are no numbers, in the file from which a run's memory is estimated."""
    folder = model(place, vocab_size="a" * 100, max_position_embeddings=[], hidden_size=-1, intermediate_size=None)
    (folder / "model.safetensors").unlink()
    return "model"


def is_nested(place: Place) -> str:
    (model(place) / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    return "model"


EXPECTED: dict[Callable[[Place], str], str] = {
    imports_a_package: "without dots",
    names_other_weights: "transformers_weights",
    is_pickled: "pickled",
    has_another_shape: "no weights there",
    is_nested: "is damaged",
}
# doctor takes seconds to look at a machine.
CASES = [
    *(pytest.param(["plan"], plant) for plant in (has_another_shape, is_nested)),
    pytest.param(DOCTOR, imports_a_package),
    *(pytest.param(DOCTOR, plant, marks=pytest.mark.slow) for plant in (is_pickled, has_another_shape, is_nested)),
    *(pytest.param(["-m", "seed=1,2"], plant) for plant in (imports_a_package, names_other_weights, is_pickled)),
]


@pytest.mark.parametrize(("verb", "plant"), CASES)
def test_a_foreign_model_is_refused(
    verb: list[str],
    plant: Callable[[Place], str],
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def words(place: Place) -> list[str]:
        return [*verb, *BERT, f"model.path={plant(place)}"]

    check_refused(words, EXPECTED[plant], place, capsys, monkeypatch)


@pytest.mark.slow
def test_an_innocent_one_is_estimated_and_diagnosed(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *BERT]) == 0
    assert "minilm" in capsys.readouterr().out
    assert main([*DOCTOR, *BERT]) == 0
    assert "KeyError" not in capsys.readouterr().out

"""docs/from_lightning.md: each row composes to what it says, or is refused with the key that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from trainer.cli import VERBS, main
from trainer.config.aliases import replace_aliases
from trainer.config.compose import compose_mapping, parse_overrides, typed
from trainer.verbs.stored_run import ACCEPTED_KEYS

PAGE = (REPOSITORY / "docs" / "from_lightning.md").read_text(encoding="utf-8")
COMMON = ["task=cnn"]


def rows(section: str) -> list[list[str]]:
    """The cells of the first table of a section."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.split("\n") if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def words_in(cell: str) -> list[str]:
    """The KEY=VALUE words of a cell."""
    return [word for code in re.findall(r"`([^`]*)`", cell) for word in code.split() if "=" in word]


@pytest.mark.parametrize("row", rows("Typed as before"), ids=lambda row: row[0])
def test_an_alias(row: list[str]) -> None:
    (there,), (here,) = (words_in(cell) for cell in row)
    assert there != here
    assert replace_aliases(parse_overrides([there])) == replace_aliases(parse_overrides([here])) == [here]
    typed(compose_mapping([*COMMON, here]))


@pytest.mark.parametrize("row", rows("Another key"), ids=lambda row: row[0])
def test_another_key_is_named(row: list[str], in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there,), (here,) = (words_in(cell) for cell in row[:2])
    assert main([*COMMON, there]) == 2
    printed = capsys.readouterr().err
    assert here.partition("=")[0] in printed.replace("use cpu", "trainer.accelerator"), printed
    assert len(printed.strip().split("\n")) <= 3
    compose_mapping([*COMMON, here])


@pytest.mark.parametrize("row", [*rows("In code"), *rows("Debugging")], ids=lambda row: row[0])
def test_what_is_named_instead_exists(row: list[str]) -> None:
    cell = row[1] if "(" in row[0] else " ".join(row)
    words = words_in(cell)
    verb = re.findall(r"`(\w+) run=DIR", cell)
    if verb:
        assert verb[0] in VERBS and verb[0] in ACCEPTED_KEYS
        return
    assert words or "always" in cell or "same command" in cell
    compose_mapping([*COMMON, *words])


def test_the_recipe_of_the_page(tmp_path: Path) -> None:
    text = PAGE.split("mine/experiment/digits.yaml\n")[1].split("\n`python")[0]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "digits.yaml").write_text(re.sub(r"(?m)^ {4}", "", text))
    mapping = compose_mapping(["experiment=digits"], [tmp_path])
    assert (mapping.trainer.max_epochs, mapping.data.name, mapping.task.name) == (3, "digits", "cnn")


RECIPES = {
    "aliases": ("# @package _global_\ntrainer: {accelerator: gpu, devices: -1, precision: bf16}\n", None),
    "indices": ("# @package _global_\ntrainer: {devices: [0, 1]}\n", "CUDA_VISIBLE_DEVICES=0,1"),
    "replaced": ("# @package _global_\ntrainer: {accumulate_grad_batches: 4}\n", "batch.micro_size"),
    "no header": ("trainer: {max_epochs: 3}\n", "@package _global_"),
    "override without a header": ("defaults: [override /task: cnn]\n", "@package _global_"),
    "no override": ("# @package _global_\ndefaults: [/task: cnn]\n", "override /task"),
    "no YAML": ("# @package _global_\ntrainer: [1\n", "own.yaml, line 3"),
    "unknown key": ("# @package _global_\ntrainer: {max_epoch: 3}\n", "max_epochs"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_in_a_folder_of_its_own(name: str, in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, refusal = RECIPES[name]
    (in_directory / "experiment").mkdir()
    (in_directory / "experiment" / "own.yaml").write_text(text)
    code = main(["--config-dir", ".", "experiment=own", "--cfg", "job", "-p", "trainer"])
    printed = capsys.readouterr()
    if refusal is None:
        assert code == 0
        assert all(line in printed.out for line in ("accelerator: cuda", "devices: auto", "precision: bf16-mixed"))
    elif code == 0:  # what only the types find
        assert main(["--config-dir", ".", "experiment=own"]) == 2
        assert refusal in capsys.readouterr().err
    else:
        assert code == 2 and refusal in printed.err
        assert len(printed.err.strip().split("\n")) <= 3


WORDS = {
    "debug=true": "debug=true: takes the name of one debug; possible: anomaly, fdr",
    "task=3": "task=3: takes the name of one task",
    "logger=null": "possible: csv, mlflow, none, tensorboard, wandb",
    "experiment=nothing": "no such experiment",
    "--trainer.max_epochs=3": "without dashes, as in trainer.max_epochs=3",
    "--config-name=x": "use experiment=NAME",
    "-cp=x": "use --config-dir=DIR",
    "hydra.job.chdir=true": "hydra.job.chdir=true: Hydra only composes here",
    "hydra/launcher=submitit": "Hydra only composes here",
    "train=false": "the verb eval evaluates",
}


@pytest.mark.parametrize("word", WORDS)
def test_habits_of_hydra(word: str, in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    printed = capsys.readouterr().err
    assert WORDS[word] in printed
    assert len(printed.strip().split("\n")) <= 3


def test_no_recipe_is_none() -> None:
    assert compose_mapping(["task=cnn", "experiment=null", "debug=null"]) == compose_mapping(["task=cnn"])

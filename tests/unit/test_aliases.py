"""Lightning's arguments: bad values, and keys with another name here. docs/from_lightning.md has the good ones."""

from pathlib import Path

import pytest
from conftest import SPIRALS

from trainer.cli import main
from trainer.config.aliases import replace_aliases
from trainer.config.compose import compose_mapping, parse_overrides, typed
from trainer.config.identity import config_to_mapping, identity_hash

WORDS = [f"plugins=[{SPIRALS}]", "task=spirals", "logger=none"]

ERRORS = {
    "two values": (["precision=bf16", "trainer.precision=32"], ["trainer.precision=32", "precision=bf16-mixed"]),
    "no number of devices": (["devices=two"], ["trainer.devices=two", "integer"]),
    "no precision": (["precision=fp8"], ["trainer.precision=fp8", "bf16-mixed"]),
    "no accelerator": (["accelerator=tpu"], ["trainer.accelerator=tpu", "cuda"]),
    "no epochs": (["max_epochs=0"], ["trainer.max_epochs=0"]),
    "no steps": (["max_steps=-2"], ["trainer.max_steps=-2"]),
    "strategy": (["trainer.strategy=dpp"], ["strategy=dpp", "ddp"]),
    "callbacks": (["trainer.callbacks=x"], ["checkpoint.*"]),
    "checkpointing": (["trainer.enable_checkpointing=false"], ["checkpoint.*"]),
    "gpus": (["trainer.gpus=2"], ["trainer.devices=N"]),
    "no fast_dev_run": (["fast_dev_run=-1"], ["trainer.fast_dev_run=-1"]),
    "no trial": (["fast_dev_run=often"], ["trainer.fast_dev_run=often", "boolean or should be a valid integer"]),
    "no overfit_batches": (["overfit_batches=-0.5"], ["trainer.overfit_batches=-0.5"]),
    "more than all": (["trainer.overfit_batches=1.5"], ["trainer.overfit_batches=1.5"]),
    "no max_time": (["max_time=5m"], ["trainer.max_time=5m", "DD:HH:MM:SS"]),
    "hours of 90 minutes": (["max_time=00:01:90:00"], ["trainer.max_time=00:01:90:00", "DD:HH:MM:SS"]),
    "no profiler": (["trainer.profiler=tensorboard"], ["profiler=tensorboard", "simple"]),
    "no print_config": (["print_config=tree"], ["run.print_config=tree"]),
    "no alias": (["max_epoch=3"], ["max_epoch=3", "no such key"]),
    "no debug": (["debug=frd"], ["debug=frd", "fdr"]),
}


@pytest.mark.parametrize("alias", ["devices=-1", "accelerator=gpu", "precision=bf16"])
def test_an_alias_is_no_other_experiment(alias: str) -> None:
    canonical = replace_aliases(parse_overrides([alias]))
    by_alias, by_key = (typed(compose_mapping([*WORDS, *words]))[0] for words in ([alias], canonical))
    assert config_to_mapping(by_alias) == config_to_mapping(by_key)
    assert identity_hash(by_alias) == identity_hash(by_key)


def test_an_alias_and_its_key_with_one_value() -> None:
    config, _ = typed(compose_mapping([*WORDS, "precision=bf16", "trainer.precision=bf16-mixed"]))
    assert config.trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("name", ERRORS)
def test_user_errors_are_printed_in_three_lines(
    name: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = ERRORS[name]
    assert main([*WORDS, *words]) == 2
    printed = capsys.readouterr().err
    assert len(printed.strip().split("\n")) <= 3, printed
    for part in expected:
        assert part in printed, printed
    assert not (in_directory / "outputs").exists()

"""A few steps of FSDP2 and ZeRO on two ranks against one process; test_strategies.py has every strategy and task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS
from safetensors.torch import load_file
from two_ranks import in_one_process, on_two_ranks, only_run

from trainer.config.deepspeed import engine_config
from trainer.run.metrics_file import read_metrics
from trainer.verbs.prepare import Options, prepare

# SGD, since Adam hides a wrong scale of the gradient; the norm is above 1, where DeepSpeed clips unless told not to.
WORDS = [
    *SPIRALS_WORDS,
    "run.name=run",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=4",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=0",
    "trainer.gradient_clip_val=null",
    "optimizer=sgd",
    "optimizer.lr=0.1",
    "scheduler=constant",
    "model.dropout=0.0",
    "model.width=256",
]
STRATEGIES = ["fsdp2", "deepspeed_stage_2"]
CLIPPED = "trainer.gradient_clip_val=0.3"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quick")
    in_one_process(folder / "one", WORDS)
    in_one_process(folder / "one-clipped", [*WORDS, CLIPPED])
    lines: dict[Path, list[str]] = {}
    for strategy in STRATEGIES:
        lines[folder / strategy] = [*WORDS, f"strategy={strategy}"]
        lines[folder / f"{strategy}-clipped"] = [*WORDS, f"strategy={strategy}", CLIPPED]
    for directory in lines:
        directory.mkdir()
    on_two_ranks(folder, lines)
    return folder


def norms(directory: Path) -> list[float]:
    return [line["optim/grad_norm"] for line in read_metrics(only_run(directory)) if "optim/grad_norm" in line]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("clipped", ["", "-clipped"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_and_gradient_norms_are_those_of_one_process(strategy: str, clipped: str, runs: Path) -> None:
    one, two = runs / f"one{clipped}", runs / f"{strategy}{clipped}"
    expected, actual = (load_file(only_run(directory) / "model.safetensors") for directory in (one, two))
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= 1e-6, name
    assert len(norms(one)) == 4
    assert norms(two) == pytest.approx(norms(one), rel=1e-4)


def test_the_norms_are_large_enough_to_be_clipped(runs: Path) -> None:
    assert max(norms(runs / "one")) > 1.0
    assert min(norms(runs / "one-clipped")) > 0.3


@pytest.mark.parametrize("task", ["cnn", "bert", "dcgan"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_deepspeed_clips_only_where_the_configuration_says_so(task: str, limit: float | None) -> None:
    plan = prepare([f"task={task}", "logger=none", "trainer.accelerator=cpu", "strategy=deepspeed_stage_2"], Options())
    trainer = replace(plan.config.trainer, gradient_clip_val=limit)
    assert engine_config(replace(plan.config, trainer=trainer), 2)["gradient_clipping"] == (limit or 0.0)

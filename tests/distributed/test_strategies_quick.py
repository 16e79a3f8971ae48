"""A few steps of FSDP2 and ZeRO on two ranks against one process; test_strategies.py has every strategy and task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from conftest import SPIRALS_WORDS
from safetensors.torch import load_file
from two_ranks import in_one_process, on_two_ranks, only_run

from trainer.checkpoint.store import find_damage
from trainer.checkpoint.weights import read_state
from trainer.config.deepspeed import engine_config
from trainer.run.files import STATE_FILE
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
CLIPPED = "trainer.gradient_clip_val=0.3"
# Beside training, so that the ranks write in threads.
SHARDED = ["checkpoint.format=sharded", "checkpoint.asynchronous=true", "checkpoint.every_n_steps=1"]
# Importing DeepSpeed on two ranks takes longer than all the steps.
STRATEGIES = ["fsdp2", pytest.param("deepspeed_stage_2", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    in_one_process(folder / "free", WORDS)
    in_one_process(folder / "clipped", [*WORDS, CLIPPED])
    return folder


@pytest.fixture(scope="module", params=STRATEGIES)
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    words = [*WORDS, f"strategy={request.param}"]
    lines = {folder / "free": words, folder / "clipped": [*words, CLIPPED]}
    if request.param == "fsdp2":
        lines[folder / "sharded"] = [*words, *SHARDED]
    for directory in lines:
        directory.mkdir()
    on_two_ranks(folder, lines)
    return folder


def norms(directory: Path) -> list[float]:
    return [line["optim/grad_norm"] for line in read_metrics(only_run(directory)) if "optim/grad_norm" in line]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("run", ["free", "clipped"])
def test_weights_and_gradient_norms_equal_one_process(run: str, one_process: Path, two_ranks: Path) -> None:
    one, two = one_process / run, two_ranks / run
    expected, actual = (load_file(only_run(directory) / "model.safetensors") for directory in (one, two))
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert (actual[name] - value).abs().max() <= 1e-6, name
    assert len(norms(one)) == 4
    assert norms(two) == pytest.approx(norms(one), rel=1e-4)


@pytest.mark.parametrize("two_ranks", ["fsdp2"], indirect=True)
def test_collectives_of_the_passes_are_communication(one_process: Path, two_ranks: Path) -> None:
    def share(directory: Path) -> float:
        lines = [line for line in read_metrics(only_run(directory)) if "perf/share_communication" in line]
        return median(line["perf/share_communication"] for line in lines)

    assert share(two_ranks / "free") > 10 * share(one_process / "free")


def test_the_norms_are_large_enough_to_be_clipped(one_process: Path) -> None:
    assert max(norms(one_process / "free")) > 1.0
    assert min(norms(one_process / "clipped")) > 0.3


@pytest.mark.parametrize("task", ["cnn", "bert", "dcgan"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_deepspeed_clips_only_where_the_configuration_says_so(task: str, limit: float | None) -> None:
    plan = prepare(
        [f"task={task}", "logger=none", "run.report=false", "trainer.accelerator=cpu", "strategy=deepspeed_stage_2"],
        Options(),
    )
    trainer = replace(plan.config.trainer, gradient_clip_val=limit)
    assert engine_config(replace(plan.config, trainer=trainer), 2)["gradient_clipping"] == (limit or 0.0)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("two_ranks", ["fsdp2"], indirect=True)
def test_shards_hold_what_the_full_checkpoint_holds(two_ranks: Path) -> None:
    full, sharded = (only_run(two_ranks / name) / "checkpoints" / "last" for name in ("free", "sharded"))
    files = sorted(path.name for path in (sharded / "shards").iterdir())
    assert files == ["rank-00000-00000.safetensors", "rank-00001-00000.safetensors"]
    assert find_damage(sharded.resolve()) is None
    for part in ("state_dict", "optimizer_states"):
        expected, actual = (read_state(checkpoint / STATE_FILE)[part] for checkpoint in (full, sharded))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    first = load_file(sharded / "shards" / files[0])
    assert first["state_dict.model.0.weight"].shape == (128, 2)

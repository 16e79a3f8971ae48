"""Every strategy on two ranks against one process: weights, optimizer state, memory, and checkpoints between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SPIRALS_WORDS
from safetensors.torch import load_file
from two_ranks import in_one_process, on_two_ranks, only_run, rewound

from trainer.cli import main
from trainer.run.files import STATE_FILE

# The fixtures train dozens of models, which on two busy cores takes minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHARDING = [
    "fsdp2",
    "deepspeed_stage_1",
    "deepspeed_stage_2",
    "deepspeed_stage_3",
    "deepspeed_stage_2_offload",
    "deepspeed_stage_3_offload",
]
STRATEGIES = ["ddp", *SHARDING]
QUIET = [
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "run.name=run",
]

# Adam and clipping would hide a gradient of a wrong scale. Two micro-batches per rank where BatchNorm permits it.
TWENTY_STEPS = [
    *QUIET,
    "optimizer=sgd",
    "scheduler=constant",
    "trainer.max_steps=20",
    "trainer.limit_val_batches=0",
    "trainer.gradient_clip_val=null",
]
GAN = [
    *QUIET,
    "task=dcgan",
    "model.width=8",
    "model.latent_size=16",
    "task.num_samples=4",
    "trainer.limit_val_batches=0",
]
TASKS = {
    "cnn": [*TWENTY_STEPS, "task=cnn", "optimizer.lr=0.02", "batch.micro_size=8"],
    # Norms are 0.2 to 0.4 here: some steps are clipped, some are not.
    "clipped": [*TWENTY_STEPS, "task=cnn", "optimizer.lr=0.02", "batch.micro_size=8", "trainer.gradient_clip_val=0.27"],
    "bert": [*TWENTY_STEPS, "task=bert", "optimizer.lr=0.02", "model.dropout=0.0", "batch.micro_size=8"],
    "dcgan": [
        *TWENTY_STEPS,
        *GAN,
        "optimizer.lr=0.0001",
        "optimizer.momentum=0.0",
        "optimizer.nesterov=false",
        # BatchNorm takes the statistics of a micro-batch, so both sides must have one per step.
        "batch.global_size=598",
    ],
}
LIMITS = {"cnn": 1e-6, "clipped": 1e-6, "bert": 1e-6, "dcgan": 1e-5}
GAN_STRATEGIES = ["ddp", "deepspeed_stage_1", "deepspeed_stage_2"]
EQUAL = [(task, strategy) for task in ("cnn", "bert") for strategy in STRATEGIES]
EQUAL += [("clipped", strategy) for strategy in ("ddp", "fsdp2", "deepspeed_stage_2", "deepspeed_stage_3")]
EQUAL += [("dcgan", strategy) for strategy in GAN_STRATEGIES]

# Options of strategies: (task, words).
OPTIONS: dict[str, tuple[str, list[str]]] = {
    "static-graph": ("cnn", ["strategy=ddp", "strategy.static_graph=true", "batch.micro_size=null"]),
    "recomputed": ("bert", ["strategy=fsdp2", "strategy.activation_checkpointing=true"]),
    "not-resharded": ("bert", ["strategy=fsdp2", "strategy.reshard_after_forward=false"]),
    "host-memory": ("cnn", ["strategy=fsdp2", "strategy.cpu_offload=true"]),
    "own-file": ("cnn", ["strategy=deepspeed", f"strategy.config={Path(__file__).with_name('zero2.json')}"]),
    "overlapped": ("cnn", ["strategy=deepspeed_stage_2", "strategy.overlap_comm=true"]),
}
LOSSY = {
    "fp16": ["strategy=ddp", "strategy.gradient_compression=fp16"],
    "powersgd": ["strategy=ddp", "strategy.gradient_compression=powersgd", "strategy.powersgd_start_step=2"],
}

# 16 steps per epoch; each run leaves checkpoints at steps 10, 20 and 30, and the last one at 32.
RESUMED = [
    *SPIRALS_WORDS,
    *QUIET,
    "model.dropout=0.0",
    "optimizer=adamw",
    "optimizer.lr=0.01",
    "trainer.max_epochs=2",
    "checkpoint.every_n_steps=10",
    "checkpoint.keep=9",
]


def state_of(run: Path, step: int) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / f"step-{step:08d}" / STATE_FILE, weights_only=True)


@pytest.fixture(scope="module")
def equal_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps of each task, in one process and under each strategy."""
    folder = tmp_path_factory.mktemp("equal")
    lines: dict[Path, list[str]] = {}
    for task, words in TASKS.items():
        in_one_process(folder / f"{task}-one", words)
        rate = next(float(word.partition("=")[2]) for word in words if word.startswith("optimizer.lr="))
        in_one_process(folder / f"{task}-scaled", [*words, f"optimizer.lr={rate * 1.01}"])
    for task, strategy in EQUAL:
        directory = folder / f"{task}-{strategy}"
        directory.mkdir()
        lines[directory] = [*TASKS[task], f"strategy={strategy}"]
    on_two_ranks(folder, lines)
    return folder


@pytest.fixture(scope="module")
def option_runs(equal_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps with each option of the strategies."""
    folder = tmp_path_factory.mktemp("options")
    lines: dict[Path, list[str]] = {}
    for name, (task, words) in [*OPTIONS.items(), *((name, ("cnn", words)) for name, words in LOSSY.items())]:
        (folder / name).mkdir()
        lines[folder / name] = [*TASKS[task], *words]
    on_two_ranks(folder, lines)
    return folder


def largest_difference(first: Path, second: Path) -> float:
    """The largest difference of any weight or statistic between the models of two runs."""
    one, two = (load_file(only_run(directory) / "model.safetensors") for directory in (first, second))
    assert one.keys() == two.keys()
    return max((two[name].double() - value.double()).abs().max().item() for name, value in one.items())


@pytest.mark.parametrize(("task", "strategy"), EQUAL)
def test_twenty_steps_on_two_ranks_equal_one_process(task: str, strategy: str, equal_runs: Path) -> None:
    assert largest_difference(equal_runs / f"{task}-one", equal_runs / f"{task}-{strategy}") <= LIMITS[task]


def test_clipping_has_an_effect(equal_runs: Path) -> None:
    assert largest_difference(equal_runs / "cnn-one", equal_runs / "clipped-one") > 2 * LIMITS["clipped"]


@pytest.mark.parametrize("task", TASKS)
def test_a_gradient_wrong_by_one_percent_would_fail(task: str, equal_runs: Path) -> None:
    """The negative control: a learning rate one percent larger is every gradient one percent larger."""
    assert largest_difference(equal_runs / f"{task}-one", equal_runs / f"{task}-scaled") > 2 * LIMITS[task]


@pytest.mark.parametrize("name", OPTIONS)
def test_options_do_not_change_the_numbers(name: str, equal_runs: Path, option_runs: Path) -> None:
    task, _ = OPTIONS[name]
    assert largest_difference(equal_runs / f"{task}-one", option_runs / name) <= LIMITS[task]


@pytest.mark.parametrize("name", LOSSY)
def test_compressed_gradients_are_close_but_not_equal(name: str, equal_runs: Path, option_runs: Path) -> None:
    assert LIMITS["cnn"] < largest_difference(equal_runs / "cnn-one", option_runs / name) < 0.1


@pytest.fixture(scope="module")
def resumed_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, list[dict[str, Any]]]]:
    """A run in one process; the same run under each strategy; and the first continued by each from step 10."""
    folder = tmp_path_factory.mktemp("resumed")
    one = in_one_process(folder / "one", RESUMED)
    lines: dict[Path, list[str]] = {}
    for strategy in STRATEGIES:
        own, taken = folder / f"own-{strategy}", folder / f"taken-{strategy}"
        own.mkdir()
        rewound(one, taken / "outputs" / "spirals" / "run", 10)
        lines[own] = lines[taken] = [*RESUMED, f"strategy={strategy}"]
    return folder, on_two_ranks(folder, lines)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_equal_those_of_one_process(strategy: str, resumed_runs: tuple[Path, Any]) -> None:
    """So a strategy that resumes from one of these checkpoints resumes from all."""
    folder, _ = resumed_runs
    expected = state_of(only_run(folder / "one"), 10)
    actual = state_of(only_run(folder / f"own-{strategy}"), 10)
    assert actual.keys() == expected.keys()
    for name in ("state_dict", "optimizer_states", "lr_schedulers"):
        # Adam divides by the root of a running square, so rounding is larger than in the gradients.
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_continues_under_another_strategy_and_world_size(strategy: str, resumed_runs: tuple[Path, Any]) -> None:
    folder, _ = resumed_runs
    run = only_run(folder / f"taken-{strategy}")
    assert [attempt["world_size"] for attempt in json.loads((run / "run.json").read_text())["attempts"]] == [1, 2]
    expected, actual = state_of(only_run(folder / "one"), 32), state_of(run, 32)
    for name in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


GAN_RESUMED = [
    *GAN,
    "trainer.max_steps=6",
    "checkpoint.every_n_steps=2",
    "checkpoint.keep=9",
]


@pytest.fixture(scope="module")
def exact_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that were and were not stopped in the middle, under the same strategy; with dropout where possible."""
    folder = tmp_path_factory.mktemp("exact")
    words = {f"spirals-{strategy}": [*RESUMED, "model.dropout=0.3", f"strategy={strategy}"] for strategy in STRATEGIES}
    words |= {f"dcgan-{strategy}": [*GAN_RESUMED, f"strategy={strategy}"] for strategy in GAN_STRATEGIES}
    lines: dict[Path, list[str]] = {}
    for name in words:
        (folder / name).mkdir()
        lines[folder / name] = words[name]
    on_two_ranks(folder, lines)
    again: dict[Path, list[str]] = {}
    for name in words:
        run = only_run(folder / name)
        target = folder / f"{name}-resumed"
        rewound(run, target / run.relative_to(folder / name), 20 if name.startswith("spirals") else 2)
        again[target] = words[name]
    on_two_ranks(folder, again)
    return folder


@pytest.mark.parametrize("name", [*(f"spirals-{s}" for s in STRATEGIES), *(f"dcgan-{s}" for s in GAN_STRATEGIES)])
def test_resuming_under_the_same_strategy_is_exact(name: str, exact_runs: Path) -> None:
    """For a GAN this covers both networks and both optimizers."""
    step = 32 if name.startswith("spirals") else 6
    uninterrupted, resumed = (only_run(exact_runs / directory) for directory in (name, f"{name}-resumed"))
    assert len(json.loads((resumed / "run.json").read_text())["attempts"]) == 2
    expected, actual = state_of(uninterrupted, step), state_of(resumed, step)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(actual[part], expected[part], rtol=0, atol=0, msg=lambda m, p=part: f"{p}: {m}")
    assert len(expected["optimizer_states"]) == (1 if name.startswith("spirals") else 2)


def test_one_process_continues_a_run_of_two_ranks(resumed_runs: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = resumed_runs
    rewound(only_run(folder / "own-deepspeed_stage_3"), tmp_path / "back" / "outputs" / "spirals" / "run", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "back")
        assert main(RESUMED) == 0
    expected = state_of(only_run(folder / "one"), 32)
    actual = state_of(only_run(tmp_path / "back"), 32)
    torch.testing.assert_close(actual["state_dict"], expected["state_dict"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("strategy", SHARDING)
def test_each_of_two_ranks_holds_half_the_optimizer(strategy: str, resumed_runs: tuple[Path, Any]) -> None:
    folder, reports = resumed_runs
    full = [report["optimizer_bytes"] for report in reports[folder / "own-ddp"]]
    sharded = [report["optimizer_bytes"] for report in reports[folder / f"own-{strategy}"]]
    assert full[0] == full[1] > 0
    for size in sharded:
        assert size <= 0.55 * full[0]

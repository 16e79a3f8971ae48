"""Sharded checkpoints of two ranks: memory of a save, and where they resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, SPIRALS_WORDS
from two_ranks import on_two_ranks, only_run, rewound
from warm import run_warm

from trainer.checkpoint.weights import read_state
from trainer.run.files import STATE_FILE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHARDED = "checkpoint.format=sharded"
RESUMED = [
    *SPIRALS_WORDS,
    "run.name=run",
    "trainer.enable_progress_bar=false",
    "model.dropout=0.0",
    "optimizer=adamw",
    "trainer.max_epochs=2",
    "checkpoint.every_n_steps=10",
    "checkpoint.keep=9",
]
PARTS = ("state_dict", "optimizer_states", "lr_schedulers")
LOADED_UNDER = ["ddp", "fsdp2", "deepspeed_stage_3"]


def state_of(run: Path, step: int) -> dict[str, Any]:
    return read_state(run / "checkpoints" / f"step-{step:08d}" / STATE_FILE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under FSDP2 in either format, and both gone on with under each strategy from step 10."""
    folder = tmp_path_factory.mktemp("sharded")
    lines: dict[Path, list[str]] = {}
    for name, words in {"full": [], "sharded": [SHARDED, "checkpoint.asynchronous=true"]}.items():
        (folder / name).mkdir()
        lines[folder / name] = [*RESUMED, "strategy=fsdp2", *words]
    on_two_ranks(folder, lines)
    again: dict[Path, list[str]] = {}
    for name in ("full", "sharded"):
        for strategy in LOADED_UNDER:
            rewound(only_run(folder / name), folder / f"{name}-{strategy}" / "outputs" / "spirals" / "run", 10)
            again[folder / f"{name}-{strategy}"] = [*RESUMED, f"strategy={strategy}"]
    on_two_ranks(folder, again)
    return folder


@pytest.mark.parametrize("step", [10, 20, 32])
def test_it_holds_the_weights_and_the_optimizer_state_of_the_full_one(step: int, folder: Path) -> None:
    full, sharded = (state_of(only_run(folder / name), step) for name in ("full", "sharded"))
    for part in PARTS:
        torch.testing.assert_close(sharded[part], full[part], rtol=0, atol=0)
    assert (only_run(folder / "sharded") / "checkpoints" / f"step-{step:08d}" / "shards").is_dir()


@pytest.mark.parametrize("strategy", LOADED_UNDER)
def test_it_resumes_under_another_strategy_as_the_full_one_does(strategy: str, folder: Path) -> None:
    full, sharded = (state_of(only_run(folder / f"{name}-{strategy}"), 32) for name in ("full", "sharded"))
    for part in PARTS:
        torch.testing.assert_close(sharded[part], full[part], rtol=0, atol=0)


def test_it_resumes_on_one_rank_as_the_full_one_does(folder: Path, tmp_path: Path) -> None:
    states = []
    for name in ("full", "sharded"):
        run = tmp_path / name / "outputs" / "spirals" / "run"
        rewound(only_run(folder / name), run, 10)
        done = run_warm(["-m", "trainer", *RESUMED], cwd=tmp_path / name)
        assert done.returncode == 0, done.stderr
        states.append(state_of(run, 32))
    for part in PARTS:
        torch.testing.assert_close(states[1][part], states[0][part], rtol=0, atol=0)


def test_a_save_takes_no_more_memory_than_the_shard(tmp_path: Path) -> None:
    words = [
        *SPIRALS_WORDS,
        "run.name=run",
        "trainer.enable_progress_bar=false",
        "optimizer=adamw",
        "strategy=fsdp2",
        # 30 million weights and twice as many numbers of the optimizer: 180 MB on each rank.
        "model.width=6000000",
        "batch.global_size=2",
        "trainer.max_steps=1",
        "trainer.limit_val_batches=0",
    ]
    modes = {"full": [], "sharded": [SHARDED], "beside": [SHARDED, "checkpoint.asynchronous=true"]}
    for name in modes:
        (tmp_path / name).mkdir()
    lines = [{"directory": str(tmp_path / name), "words": [*words, *more]} for name, more in modes.items()]
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = REPOSITORY / "tests" / "distributed" / "save_memory.py"
    done = run_warm([*launcher, str(script), str(tmp_path / "lines.json")], cwd=tmp_path, timeout_s=800)
    assert done.returncode == 0, done.stdout + done.stderr
    full, sharded, beside = json.loads((tmp_path / "lines.json.0").read_text())
    files = (only_run(tmp_path / "sharded") / "checkpoints" / "last" / "shards").glob("rank-00000-*")
    shard = sum(file.stat().st_size for file in files)
    print(
        f"shard {shard / 2**20:.0f} MiB; taken by a save: full {full / 2**20:.0f}, sharded {sharded / 2**20:.0f}, "
        f"beside training {beside / 2**20:.0f} MiB"
    )
    assert shard > 150 * 2**20
    assert sharded <= 1.2 * shard
    assert beside <= 1.2 * shard
    # Weights and optimizer state of both ranks: what the comparison would find if they were gathered.
    assert full > 1.8 * shard

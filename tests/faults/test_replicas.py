"""Weights that differ between ranks are found at the next comparison."""

from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SPIRALS, SPIRALS_WORDS
from torch import nn
from warm import run_warm

from trainer.cli import main
from trainer.faults.replicas import checksums, difference

FAULTY = REPOSITORY / "tests" / "fixtures" / "faulty"
WORDS = [
    f"plugins=[{SPIRALS},{FAULTY}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=12",
    "trainer.devices=2",
    "faults.verify_replicas_every_n_steps=4",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_bit_changes_the_checksum_of_its_tensor(dtype: torch.dtype) -> None:
    network = nn.Linear(3, 2).to(dtype)
    before = checksums({"model": network})
    bits = network.weight.data.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    for bit in range(8 * dtype.itemsize - 1):
        bits[1, 2] ^= 1 << bit
        assert {n for n, s in checksums({"model": network}).items() if s != before[n]} == {"model.weight"}
        bits[1, 2] ^= 1 << bit
    assert checksums({"model": network}) == before


def test_the_minority_is_named() -> None:
    right = {"model.a": 5, "model.b": 7}
    assert difference([right, right, right]) is None
    assert difference([right, {**right, "model.b": 8}, right]) == "rank 1 differs from the other 2 in model.b"
    assert "no majority" in str(difference([right, {**right, "model.b": 8}]))


def test_a_flipped_bit_on_one_of_two_ranks_ends_the_run(tmp_path: Path) -> None:
    done = run_warm(["-m", "trainer", *WORDS], cwd=tmp_path, env={"FAULT": "bit_flip:1:5"})
    assert done.returncode == 1
    first, second = done.stderr.strip().split("\n")[-2:]
    # DDP adds the same gradients to what differs.
    assert first == "step 8: the ranks hold different weights (model.0.bias), and no majority says which is right"
    assert "resumes" in second
    assert list(tmp_path.glob("outputs/faulty/*/checkpoints/step-*")) == []


def test_sharded_weights_have_no_replicas(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SPIRALS_WORDS, "strategy=fsdp2", "faults.verify_replicas_every_n_steps=4"]
    assert main(words) == 2
    assert "faults.verify_replicas_every_n_steps=4: fsdp2 shards the weights" in capsys.readouterr().err

"""Checkpoints in shards: what ranks write, put together for any number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SPIRALS_WORDS

from trainer.checkpoint.choose import find_checkpoint
from trainer.checkpoint.shard_exchange import ShardExchange
from trainer.checkpoint.shards import FILE_BYTES, SHARDED, join_shards, own_parts, split_state, write_shards
from trainer.checkpoint.weights import read_state
from trainer.cli import main
from trainer.errors import UserError
from trainer.run.files import STATE_FILE

WORDS = [
    *SPIRALS_WORDS,
    "run.name=run",
    "optimizer=adamw",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=1",
    "trainer.max_steps=12",
    "trainer.val_check_interval=8",
    "checkpoint.every_n_steps=4",
]
IN_SHARDS = "checkpoint.format=sharded"
RUN = Path("outputs", "spirals", "run")


def some_state() -> dict[str, Any]:
    tied = torch.arange(12.0).reshape(3, 4)
    return {
        "state_dict": {"in": tied, "out": tied.detach(), "bias": torch.arange(3.0), "half": torch.ones(2).bfloat16()},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": tied * 2}}, "param_groups": [{}]}],
        "random_states": [torch.arange(5)],
    }


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_a_state_is_put_together_again(num_ranks: int, tmp_path: Path) -> None:
    rest, tensors = split_state(some_state())
    assert list(tensors) == [
        "state_dict.in",
        "state_dict.bias",
        "state_dict.half",
        "optimizer_states.0.state.0.exp_avg",
    ]
    for rank in range(num_ranks):
        write_shards(own_parts(tensors, rank, num_ranks), tmp_path, rank)
    joined = join_shards(rest, tmp_path, SHARDED)
    torch.testing.assert_close(joined, some_state(), rtol=0, atol=0)
    assert joined["state_dict"]["in"] is joined["state_dict"]["out"]
    weights = join_shards(rest, tmp_path, ["state_dict"])
    assert weights.keys() == some_state().keys() - {"optimizer_states"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 1, 4, 4), (1, 6, 2, 2)])
def test_the_layout_in_memory_is_given_back(
    shape: tuple[int, ...], layout: torch.memory_format, tmp_path: Path
) -> None:
    """Adam rounds differently where its averages are not laid out as the weights are."""
    weight = torch.randn(shape).to(memory_format=layout)
    state = {"state_dict": {"weight": weight, "transposed": torch.randn(5, 7).T}}
    rest, tensors = split_state(state)
    write_shards(own_parts(tensors, 0, 1), tmp_path, 0)
    joined = join_shards(rest, tmp_path, SHARDED)["state_dict"]
    for name, expected in state["state_dict"].items():
        assert torch.equal(joined[name], expected) and joined[name].stride() == expected.stride(), name
    for place in rest["state_dict"].values():
        del place["order"]
    old = join_shards(rest, tmp_path, SHARDED)["state_dict"]
    assert torch.equal(old["weight"], weight), "a checkpoint from before the order was written"


@pytest.mark.parametrize("order", [[0, 9], [0, 0], ["a", 1], [], 3])
def test_an_order_that_is_none_is_refused(order: object, tmp_path: Path) -> None:
    rest, tensors = split_state({"state_dict": {"weight": torch.ones(2, 3)}})
    write_shards(own_parts(tensors, 0, 1), tmp_path, 0)
    rest["state_dict"]["weight"]["order"] = order
    with pytest.raises(ValueError, match="not the shards of"):
        join_shards(rest, tmp_path, SHARDED)


def test_ranks_divide_what_all_of_them_hold() -> None:
    _, tensors = split_state(some_state())
    assert [list(own_parts(tensors, rank, 2)) for rank in (0, 1)] == [
        ["state_dict.in", "state_dict.half"],
        ["state_dict.bias", "optimizer_states.0.state.0.exp_avg"],
    ]


def test_without_the_shards_of_a_rank_nothing_is_put_together(tmp_path: Path) -> None:
    """The negative control: each rank has written something that no other has."""
    rest, tensors = split_state(some_state())
    write_shards(own_parts(tensors, 0, 2), tmp_path, 0)
    with pytest.raises(ValueError, match="not the shards"):
        join_shards(rest, tmp_path, SHARDED)


def test_no_file_is_much_larger_than_what_is_copied_at_once(tmp_path: Path) -> None:
    tensors = {f"state_dict.{n}": torch.full((FILE_BYTES // 8,), float(n)) for n in range(5)}
    files = write_shards(own_parts(tensors, 0, 1), tmp_path, 0)
    assert [round(file.stat().st_size / FILE_BYTES, 2) for file in files] == [1.0, 1.0, 0.5]


def test_a_sharded_run_equals_a_full_one_and_resumes(in_directory: Path) -> None:
    assert main(WORDS) == 0
    expected = read_state(RUN / "checkpoints" / "last" / STATE_FILE)
    assert main([*WORDS, "run.name=shards", IN_SHARDS]) == 0
    last = RUN.with_name("shards") / "checkpoints" / "last"
    assert (last / STATE_FILE).stat().st_size < (RUN / "checkpoints" / "last" / STATE_FILE).stat().st_size
    actual = read_state(last / STATE_FILE)
    assert actual.keys() == expected.keys()
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "checkpointing"):
        torch.testing.assert_close(actual[part], expected[part], rtol=0, atol=0)
    assert main(["convert", f"run={RUN.with_name('shards')}", "checkpoint=last", "out=weights.safetensors"]) == 0
    assert main([*WORDS, "run.name=further", f"ckpt_path={last}", "trainer.max_steps=16"]) == 0


def test_a_shard_that_is_lost_or_changed_is_damage(in_directory: Path) -> None:
    assert main([*WORDS, IN_SHARDS]) == 0
    checkpoint = RUN / "checkpoints" / "last"
    (shard,) = (checkpoint / "shards").iterdir()
    content = shard.read_bytes()
    for changed in (content[:-1] + b"x", content[:-1], None):
        shard.unlink() if changed is None else shard.write_bytes(changed)
        with pytest.raises(UserError, match=r"shards/rank-00000-00000\.safetensors"):
            find_checkpoint("last", RUN)


def test_rank_0_hears_of_what_another_rank_could_not_write(tmp_path: Path) -> None:
    first, second = (ShardExchange(rank, 2, timeout_s=60, token="t") for rank in (0, 1))
    (tmp_path / "shards").write_text("no folder")
    with pytest.raises(OSError, match="shards"):
        second.report({"a": (torch.ones(3), [0])}, tmp_path)
    with pytest.raises(OSError, match="rank 1 could not write its shards"):
        first.collect(tmp_path)


def test_rank_0_does_not_wait_for_ever_nor_take_an_older_report(tmp_path: Path) -> None:
    ShardExchange(1, 2, timeout_s=60, token="older").report({"a": (torch.ones(3), [0])}, tmp_path)
    with pytest.raises(OSError, match="rank 1 has not written its shards within"):
        ShardExchange(0, 2, timeout_s=0.2, token="newer").collect(tmp_path)
    assert ShardExchange(0, 2, timeout_s=60, token="older").collect(tmp_path).keys() == {
        "shards/rank-00001-00000.safetensors"
    }


def test_deepspeed_refuses_shards(in_directory: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*WORDS, IN_SHARDS, "strategy=deepspeed_stage_2", "trainer.devices=2"]) == 2
    assert "checkpoint.format=sharded" in capsys.readouterr().err

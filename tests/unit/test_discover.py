"""Which ranks a run has, and which numbers of nodes are refused before the first one starts."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import SPIRALS_WORDS

from trainer.config.compose import compose_mapping, typed
from trainer.config.validation import validate
from trainer.data.samplers import Share, split_step
from trainer.errors import ConfigError
from trainer.launch.discover import plan_world
from trainer.world import World

RANGE = ["launch.min_nodes=1", "launch.max_nodes=3", "launch.endpoint=127.0.0.1:29400"]


STATIC_GRAPH = ["strategy=ddp", "strategy.static_graph=true", "batch.micro_size=5", "batch.global_size=10"]


def torchrun(num_nodes: int) -> dict[str, str]:
    """The environment of rank 0, one rank on each node."""
    size = {"WORLD_SIZE": str(num_nodes), "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    return {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **size}


def problems_of(*words: str, num_nodes: int | None = None) -> list[str]:
    """What validation reports in the process that starts the ranks, or in a rank on so many nodes."""
    config, task = typed(compose_mapping([*SPIRALS_WORDS, *words]))
    try:
        world = plan_world(config.trainer, config.launch, torchrun(num_nodes) if num_nodes else {})
        validate(config, task, world)
    except ConfigError as error:
        return error.lines
    return []


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_a_resized_world_need_not_divide_the_batch(num_nodes: int) -> None:
    words = [*RANGE, "trainer.num_nodes=2", "batch.global_size=10"]
    assert problems_of(*words, num_nodes=num_nodes) == []
    shares = [split_step(np.arange(10), Share(rank, num_nodes), 10) for rank in range(num_nodes)]
    assert sorted(index for share in shares for micro in share for index in micro.indices) == list(range(10))


def test_the_planned_world_still_has_to_divide_it() -> None:
    words = ["trainer.num_nodes=3", "batch.global_size=10"]
    (problem,) = problems_of(*RANGE, *words, num_nodes=3)
    assert problem.startswith("batch.global_size=10: not divisible by 3 ranks")
    # Nothing says that nodes may be lost.
    assert "not divisible by 3 ranks" in problems_of("batch.global_size=10", num_nodes=3)[0]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["launch.min_nodes=3", "launch.max_nodes=2"], "launch.min_nodes=3: more than launch.max_nodes=2"),
        (["launch.min_nodes=3", "trainer.num_nodes=2"], "launch.min_nodes=3: more than trainer.num_nodes=2"),
        (
            ["launch=slurm", "launch.nodes=2", "launch.min_nodes=1", "launch.max_nodes=4"],
            "launch.max_nodes=4: the job has launch.nodes=2",
        ),
        (
            [*RANGE, "strategy=deepspeed_stage_2", "batch.global_size=32"],
            "batch.global_size=32: deepspeed_stage_2 on 1 to",
        ),
        (
            [*RANGE, "trainer.num_nodes=2", *STATIC_GRAPH],
            "strategy.static_graph=true: on 1 node a rank has 10 samples",
        ),
    ],
)
def test_numbers_of_nodes_that_can_never_train_are_named(words: list[str], problem: str) -> None:
    endpoint = ["launch.endpoint=127.0.0.1:29400"]
    assert [line for line in problems_of(*endpoint, *words) if line.startswith(problem)]


def test_numbers_that_work_are_not_refused() -> None:
    assert problems_of(*RANGE, "strategy=deepspeed_stage_2", "batch.global_size=36") == []
    assert problems_of(*RANGE, "strategy=fsdp2", "batch.global_size=32") == []


def test_a_world_is_printed_with_its_nouns_in_number() -> None:
    one = World("single", "cpu", 1, 1, 1)
    assert str(one) == "1 = 1 node x 1, cpu"
    assert str(replace(one, world_size=16, local_world_size=8, num_nodes=2)) == "16 = 2 nodes x 8, cpu"

"""A run that is killed at any moment and started again ends as the run never killed; benchmarks/kill_runs.py has more.

Runs in `make test-slow`, in about two minutes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from kills import Kill, Kind, Reference, differences, draw_kills, killed_until_done, never_killed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BERT = Kind("bert", None, 1)
SHARDED, BESIDE = "checkpoint.format=sharded", "checkpoint.asynchronous=true"
KINDS = [
    Kind("cnn", None, 10),
    BERT,
    Kind("dcgan", None, 1, (BESIDE,)),
    Kind("cnn", "ddp", 1),
    Kind("bert", "fsdp2", 10, (SHARDED, BESIDE)),
]
# In the second epoch, after the checkpoint of its third step.
MIDDLE = Kill("step", 0.0, "forward", count=11)


@pytest.fixture(scope="module")
def reference_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Reference]:
    folder = tmp_path_factory.mktemp("never-killed")

    @cache
    def reference(kind: Kind) -> Reference:
        return never_killed(kind.never_killed, folder / str(KINDS.index(kind)))

    return reference


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kills_at_random_moments_change_nothing(
    kind: Kind, reference_of: Callable[[Kind], Reference], tmp_path: Path
) -> None:
    reference = reference_of(kind)
    kills = draw_kills(random.Random(f"{kind}"), kind, reference, 3)
    assert killed_until_done(kind, reference, tmp_path / "run", kills).differences == [], kills


@pytest.mark.parametrize("left_out", ["random_state", "position"])
def test_what_is_left_out_of_resuming_is_noticed(
    left_out: str, reference_of: Callable[[Kind], Reference], tmp_path: Path
) -> None:
    """The negative control: without a rank's random numbers, or its place in the data, the comparison fails."""
    killed = killed_until_done(BERT, reference_of(BERT), tmp_path / "run", [MIDDLE], LEAVE_OUT=left_out)
    assert killed.phases == ["step"]
    assert any(difference.startswith("model.safetensors/") for difference in killed.differences)


def test_another_run_is_different(reference_of: Callable[[Kind], Reference]) -> None:
    assert differences(reference_of(KINDS[0]).run, reference_of(KINDS[3]).run)

"""What a run is said to be bound by: planted in a known clock, and in runs of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, SPIRALS, SPIRALS_WORDS
from watching import run_forked

from trainer.checkpoint.store import CheckpointStore
from trainer.cli import main
from trainer.clock import STATES, State
from trainer.data import loaders
from trainer.module import TrainingModule
from trainer.observe.step_time import RankTimes
from trainer.observe.verdict import Verdict, judge, parts_of
from trainer.verbs.prepare import Options, prepare

HEALTHY: dict[State, float] = {
    "forward": 30,
    "backward": 55,
    "optimizer": 5,
    "data_wait": 2,
    "evaluation": 5,
    "other": 3,
}


def ranks(*times: dict[State, float]) -> RankTimes:
    return RankTimes([{state: int(rank.get(state, 0) * 1e9) for state in STATES} for rank in times])


def verdict(*times: dict[State, float], efficiency: float | None = None, words: list[str] | None = None) -> Verdict:
    config = prepare([*SPIRALS_WORDS, *(words or [])], Options()).config
    return judge(ranks(*times), config, "cpu", efficiency)


@pytest.mark.parametrize(
    ("state", "bound", "advice"),
    [
        ("data_wait", "data", "performance.prefetch_batches="),
        ("host_to_device", "copy", "batch.global_size"),
        ("optimizer", "optimizer", "optimizer.fused=true"),
        ("communication", "communication", "strategy=ddp strategy.gradient_compression=bf16"),
        ("evaluation", "evaluation", "trainer.check_val_every_n_epoch=4"),
        ("checkpoint", "checkpoints", "checkpoint.at_evaluation=false"),
        ("logging", "logging", "trainer.log_every_n_steps=40"),
        ("other", "host", "performance.compile=true"),
    ],
)
def test_the_largest_part_is_named_with_the_gain_of_its_absence(state: State, bound: str, advice: str) -> None:
    times: dict[State, float] = {**HEALTHY, state: 300.0}
    found = verdict(times)
    rest = sum(times.values()) - 300
    assert (found.bound, found.target) == (bound, bound)
    assert found.share == pytest.approx(300 / (300 + rest))
    assert found.gain == pytest.approx((300 + rest) / rest)
    assert found.advice.startswith(advice)
    assert all(len(line) <= 80 for line in found.lines())


def test_a_healthy_run_is_bound_by_its_computation() -> None:
    found = verdict(HEALTHY, efficiency=0.25)
    assert (found.bound, found.target, found.advice) == ("compute", "compute", "performance.compile=true")
    assert found.share == pytest.approx(0.85)
    assert found.gain == pytest.approx(100 / (15 + 85 * 0.25))
    assert verdict(HEALTHY).gain is None
    # So is one on ranks that differ by less than the margin.
    assert verdict(HEALTHY, {**HEALTHY, "backward": 50, "communication": 5}).bound == "compute"


def test_a_part_worth_the_effort_is_named_beside_the_bound() -> None:
    found = verdict({**HEALTHY, "evaluation": 40})
    assert (found.bound, found.target) == ("compute", "evaluation")
    assert found.gain == pytest.approx(135 / 95)


def test_the_others_wait_for_a_slow_rank() -> None:
    """It needs 300 where the others need 100: without it the run would be three times as fast."""
    fast: dict[State, float] = {"forward": 100, "communication": 210}
    slow: dict[State, float] = {"forward": 300, "communication": 10}
    for times in ([fast, slow], [slow, fast], [fast, fast, slow, fast]):
        found = verdict(*times)
        assert (found.bound, found.rank) == ("slow rank", times.index(slow))
        assert found.share == pytest.approx(200 / 310)
        assert parts_of(ranks(*times))["communication"] == pytest.approx(10 / 310)
    assert verdict({"forward": 100, "communication": 210}, fast).bound == "communication"


# ---- planted in runs: what is planted takes 30 times as long as the rest of a step

WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=1",
    "data.num_points=320",
    "run.name=run",
]
PLANTED_S = 1.0  # in a run that takes a tenth of it


def slowed(owner: Any, name: str, patch: pytest.MonkeyPatch, times: int = 10) -> None:
    """Let a method take longer. Args: times: how often it is called in a run."""
    original: Callable[..., Any] = getattr(owner, name)

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(PLANTED_S / times)
        return original(*arguments, **options)

    patch.setattr(owner, name, slow)


def recorded(directory: Path) -> dict[str, Any]:
    (file,) = directory.glob("outputs/*/run/run.json")
    return json.loads(file.read_text())["time"]


@pytest.mark.parametrize(
    ("bound", "owner", "name", "times"),
    [
        ("data", loaders, "split_step", 10),
        ("optimizer", TrainingModule, "_optimize", 10),
        ("evaluation", TrainingModule, "validation_step", 1),
        ("checkpoints", CheckpointStore, "commit", 1),
    ],
)
def test_what_is_slow_in_a_run_is_named(
    bound: str,
    owner: Any,
    name: str,
    times: int,
    in_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slowed(owner, name, monkeypatch, times)
    assert main(WORDS) == 0
    account = recorded(in_directory)
    assert account["verdict"]["bound"] == bound
    assert sum(account["shares"].values()) == pytest.approx(1.0)
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"bound by {bound} (") for line in printed)
    assert max(map(len, printed[printed.index("10 steps done") :])) <= 80


def test_a_slow_rank_is_named(in_directory: Path) -> None:
    def slow_on_rank_1(rank: int) -> None:
        if rank == 1:
            slowed(TrainingModule, "global_mean", pytest.MonkeyPatch(), 10)

    assert run_forked(WORDS, in_directory, ranks=2, prepare=slow_on_rank_1) == [0, 0]
    found = recorded(in_directory)["verdict"]
    assert (found["bound"], found["rank"]) == ("slow rank", 1)

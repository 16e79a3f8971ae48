"""A few of the preemptions of tests/preemptions.py."""

import random
from pathlib import Path

import pytest
from preemptions import preempt


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_stopped_is_the_same_run(ranks: int, tmp_path: Path) -> None:
    assert list(preempt(tmp_path, ranks, 2, random.Random(ranks)))

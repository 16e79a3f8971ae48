"""A few of the preemptions of preemptions.py."""

import importlib.util
import random
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("preemptions.py")
spec = importlib.util.spec_from_file_location("preemptions", FILE)
assert spec is not None and spec.loader is not None
preemptions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(preemptions)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_stopped_is_the_same_run(ranks: int, tmp_path: Path) -> None:
    stops = list(preemptions.preempt(tmp_path, ranks, 2, random.Random(ranks)))
    assert stops

"""Which inputs share a batch."""

import random
from typing import Any

import pytest

from trainer.serve.batcher import FIXED_TOKENS, Batcher, Item, choose
from trainer.serve.metrics import Metrics
from trainer.serve.problems import RequestProblem


class Echo:
    """A model whose result says which inputs were computed together."""

    def compute(self, worker: int, prepared: list[Any]) -> list[dict[str, Any]]:
        if "fails" in prepared:
            raise RuntimeError("as a runtime does")
        return [{"together": prepared} for _ in prepared]


MODEL: Any = Echo()


def items(lengths: list[int], model: Any = MODEL) -> list[Item]:
    return [Item(model, length, length) for length in lengths]


def test_the_oldest_is_in_the_batch_with_its_nearest() -> None:
    waiting = items([100, 5, 90, 101, 300, 120, 99, 7])
    assert [item.length for item in choose(waiting, 4)] == [100, 101, 99, 90]
    assert [item.length for item in choose(waiting[1:], 4)] == [5, 7], "100 tokens would be computed for each"
    assert choose(waiting, 1) == waiting[:1]


def test_nothing_waits_for_its_own_length() -> None:
    draw = random.Random(1)
    waiting = items([draw.randint(1, 512) for _ in range(200)])
    for _ in range(200):
        if not waiting:
            break
        chosen = choose(waiting, 8)
        assert waiting[0] in chosen
        lengths = [item.length for item in chosen]
        alone_tokens = FIXED_TOKENS + waiting[0].length
        assert FIXED_TOKENS + len(chosen) * max(lengths) <= len(chosen) * alone_tokens, "no slower than one by one"
        waiting = [item for item in waiting if item not in chosen]
    assert not waiting


def test_a_batch_has_one_model() -> None:
    other: Any = Echo()
    waiting = [*items([10, 10]), *items([10, 10], other)]
    assert {id(item.model) for item in choose(waiting, 8)} == {id(MODEL)}
    assert {id(item.model) for item in choose(waiting[2:], 8)} == {id(other)}


def test_a_request_is_queued_as_a_whole_or_not_at_all() -> None:
    batcher = Batcher(1, max_batch=64, max_wait_s=600, max_queue=5, queue_s=600, metrics=Metrics())
    first = items([20, 20, 20])
    batcher.submit(first)
    with pytest.raises(RequestProblem, match="queue is full") as problem:
        batcher.submit(items([20, 20, 20]))
    assert problem.value.status == 429
    second = items([20, 20])
    batcher.submit(second)
    batcher.close()  # computes what waits
    assert [item.result.result()["together"] for item in (*first, *second)] == [[20] * 5] * 5


def test_a_failure_is_that_of_its_batch_alone() -> None:
    batcher = Batcher(2, max_batch=8, max_wait_s=0, max_queue=100, queue_s=600, metrics=Metrics())
    (bad,), good = [Item(MODEL, "fails", 500)], items([10, 10])
    batcher.submit([bad])
    with pytest.raises(RuntimeError, match="as a runtime does"):
        bad.result.result(60)
    batcher.submit(good)
    assert [item.result.result(60)["together"] for item in good]
    batcher.close()

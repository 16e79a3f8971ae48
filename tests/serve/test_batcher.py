"""Which inputs share a batch."""

import random
from typing import Any

import pytest

from trainer.serve.batcher import FIXED_TOKENS, SCORES_PER_TOKEN, Batcher, Item, choose
from trainer.serve.metrics import Metrics
from trainer.serve.problems import RequestProblem


class Echo:
    """A model whose result says which inputs were computed together."""

    def __init__(self, computes_padding: bool = True) -> None:
        self.computes_padding = computes_padding

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
    long = items([100] + [5] * 31)
    assert choose(long, 32) == long[:1], "95 tokens of padding for each of the others"


def test_without_padding_lengths_may_differ_until_attention_costs_more_than_a_batch_saves() -> None:
    model: Any = Echo(computes_padding=False)
    assert [item.length for item in choose(items([14, 5, 9, 28, 20], model), 32)] == [14, 9, 20, 5, 28]
    assert [item.length for item in choose(items([14] * 31 + [128], model), 32)] == [14] * 31
    assert len(choose(items([128] * 32, model), 32)) == 32


def work_tokens(lengths: list[int], computes_padding: bool) -> float:
    """As measured with a MiniLM: 31 texts of 14 tokens and one of 128 took 374 ms, and 91 and 37 apart."""
    width = max(lengths)
    if computes_padding:
        return FIXED_TOKENS + len(lengths) * width
    return FIXED_TOKENS + sum(lengths) + len(lengths) * width * width / SCORES_PER_TOKEN


@pytest.mark.parametrize("computes_padding", [True, False])
def test_nothing_waits_for_its_own_length(computes_padding: bool) -> None:
    draw, model = random.Random(1), Echo(computes_padding)
    waiting = items([draw.randint(1, 512) for _ in range(200)], model)
    sizes = []
    while waiting:
        chosen = choose(waiting, 8)
        assert waiting[0] in chosen
        lengths = [item.length for item in chosen]
        apart = sum(work_tokens([length], computes_padding) for length in lengths)
        assert work_tokens(lengths, computes_padding) <= apart + 1e-6, "no more work than one by one"
        sizes.append(len(chosen))
        waiting = [item for item in waiting if item not in chosen]
    assert max(sizes) == 8 and sum(sizes) == 200


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

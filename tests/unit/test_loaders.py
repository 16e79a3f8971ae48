"""Prefetching changes when batches are made, not which, and hides no error."""

import threading
from collections.abc import Iterator

import pytest

from trainer.data.loaders import prefetch


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order(depth: int) -> None:
    assert list(prefetch(range(20), depth)) == list(range(20))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_is_raised_where_the_item_was_due(depth: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("planted")

    batches = prefetch(items(), depth)
    assert next(batches) == 1
    with pytest.raises(ValueError, match="planted"):
        next(batches)


def test_leaving_early_ends_the_thread() -> None:
    before = set(threading.enumerate())
    batches = prefetch(range(1000), 2)
    assert next(batches) == 0
    assert len(set(threading.enumerate()) - before) == 1
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert set(threading.enumerate()) <= before

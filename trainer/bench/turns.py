"""Sides that keep their state: each lives in a process of its own on the same core, and works only in its turns."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from trainer.bench.rounds import Sample
from trainer.errors import UserError

WARM_UP_TURNS = 2
# Cases of what a side sends.
DONE, USER_ERROR, FAILED = "done", "user error", "failed"

# Done in a process of its own: calls `begin_step` and `end_step` around each step, until one raises NoMoreTurns.
Work = Callable[["Turns"], None]


class NoMoreTurns(Exception):
    """The measurement is over."""


class Turns:
    """A side's end of the pipe. steps: of a turn."""

    def __init__(self, pipe: Connection, steps: int) -> None:
        self.pipe, self.steps = pipe, steps
        self.done = 0
        self.losses: dict[int, Any] = {}
        self.since_s = time.process_time()

    def begin_step(self) -> None:
        """Wait for the next turn where one has ended. Raises: NoMoreTurns."""
        if self.done % self.steps == 0:
            try:
                self.pipe.recv()
            except EOFError:
                raise NoMoreTurns from None

    def end_step(self, loss: Any) -> None:
        """Count a step; at the end of a turn send its CPU time, with what the process has done since the last turn.

        Args: loss: a number or a scalar tensor, which is read after the time is taken; None where none is compared.
        """
        self.done += 1
        if loss is not None:
            self.losses[self.done] = loss
        if self.done % self.steps == 0:
            spent_s = time.process_time() - self.since_s
            computed = {f"loss of step {step}": float(value) for step, value in self.losses.items()}
            self.losses = {}
            self.pipe.send((DONE, Sample(spent_s / self.steps, computed)))
            self.since_s = time.process_time()


@contextmanager
def taking_turns(
    works: Mapping[str, Work], steps: int, warm_up_turns: int = WARM_UP_TURNS
) -> Iterator[Mapping[str, Callable[[], Sample]]]:
    """Start a process for each side, one after the other, and let each take its turns of warm-up.

    Args: works: functions or partial functions of modules. steps: of a turn.
    Yields: by side, a function that lets it take a turn and returns the CPU time of a step and the losses by step.
    Raises: UserError: a side raised one. RuntimeError: a side failed.
    """
    context = multiprocessing.get_context("spawn")
    sides: dict[str, tuple[Connection, BaseProcess]] = {}
    try:
        for name, work in works.items():
            pipe, theirs = context.Pipe()
            process = context.Process(target=_side, args=(work, theirs, steps), name=name, daemon=True)
            process.start()
            theirs.close()
            sides[name] = pipe, process
            for _ in range(warm_up_turns):
                _turn(pipe, name)
        yield {name: (lambda pipe=pipe, name=name: _turn(pipe, name)) for name, (pipe, _) in sides.items()}
    finally:
        for pipe, _ in sides.values():
            pipe.close()
        for _, process in sides.values():
            process.join()


def _turn(pipe: Connection, name: str) -> Sample:
    try:
        with suppress(BrokenPipeError):  # what it has sent before it died is read below
            pipe.send(None)
        case, value = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise RuntimeError(f"{name}: its process died") from None
    if case == USER_ERROR:
        raise UserError(*value)
    if case == FAILED:
        raise RuntimeError(f"{name} failed\n{value}")
    return value


def _side(work: Work, pipe: Connection, steps: int) -> None:
    """The process of a side."""
    # All sides on one core: which of several is faster does not matter then.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    # What the parent prints of each turn must stay readable.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    turns = Turns(pipe, steps)
    try:
        work(turns)
    except NoMoreTurns:
        return
    except UserError as error:
        pipe.send((USER_ERROR, error.lines))
    except Exception:  # noqa: BLE001 - the parent raises it
        # Unless the parent is gone.
        with suppress(OSError):
            pipe.send((FAILED, traceback.format_exc()))

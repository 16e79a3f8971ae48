"""Records the chosen steps of one rank, and names their parts by the states of the clock."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl

from trainer.clock import State, StepClock
from trainer.profile.recorder import Recorder

log = logging.getLogger(__name__)


class ProfiledSteps(pl.Callback):
    """Starts a recorder where the first chosen step asks for its batch, and stops it where the last one ends.

    The clock says when: each step is a range, such as "step 10", and within it each state but `other`, such as
    "forward", or "forward generator" where a task has several networks. The clock is observed from the start of
    training until the last chosen step has ended.
    """

    def __init__(self, recorder: Recorder, steps: tuple[int, int], clock: StepClock) -> None:
        self.recorder, self.clock = recorder, clock
        self.first, self.last = steps
        self.done = 0
        self.recording = False
        self.several_networks = False
        self.in_state: tuple[State, str] = ("other", "")
        # What the recorder has given for the ranges that are open, the step's first.
        self.step_range: Any = None
        self.state_range: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Lightning's hook: observe the clock from here."""
        self.done = trainer.global_step
        self.several_networks = len(pl_module.networks()) > 1
        if self.done >= self.first:
            log.warning("no profile: the run continues after step %d, and steps begin at %d", self.done, self.first)
            return
        self.clock.observer = self

    def on_state(self, state: State, network: str) -> None:
        """See trainer.clock.Observer."""
        if not self.recording:
            if state != "data_wait" or self.done + 1 != self.first:
                return
            self._start()
        elif (state, network) == self.in_state:
            return
        self._close_state()
        if state == "data_wait":
            self.step_range = self.recorder.open_range(f"step {self.done + 1}")
        self.in_state = (state, network)
        if state != "other":
            name = f"{state} {network}" if network and self.several_networks else state
            self.state_range = self.recorder.open_range(name)

    def on_step_end(self) -> None:
        """See trainer.clock.Observer."""
        self.done += 1
        if self.recording:
            self._close_step()
            if self.done == self.last:
                self._stop()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook: write what there is where training has ended within the chosen steps or before them."""
        if self.clock.observer is self:
            log.warning("the profile is incomplete: training has ended after step %d of %d", self.done, self.last)
            self._close_step()
            self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lightning's hook: the same after an error, such as one of memory, which what was recorded may explain."""
        try:
            self.on_train_end(trainer, pl_module)
        except Exception:
            log.exception("no profile of the steps before the error")

    def _close_state(self) -> None:
        if self.state_range is not None:
            self.recorder.close_range(self.state_range)
            self.state_range = None
        self.in_state = ("other", "")

    def _close_step(self) -> None:
        self._close_state()
        if self.step_range is not None:
            self.recorder.close_range(self.step_range)
            self.step_range = None

    # To start a recorder and to write what it has takes up to seconds, which the run's account leaves out.

    def _start(self) -> None:
        self.recording = True
        self.clock.observer = None
        with self.clock.paused():
            self.recorder.start()
        self.clock.observer = self

    def _stop(self) -> None:
        self.clock.observer = None
        if self.recording:
            self.recording = False
            self.recorder.steps = (self.first, max(self.first, self.done))
            with self.clock.paused():
                try:
                    self.recorder.stop()
                except Exception:
                    # torch's analysis of its own events fails at times, and a profile is not worth a run.
                    log.exception("no profile of the %s", self.recorder.title)

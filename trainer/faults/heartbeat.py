"""What a rank says of itself while it trains, in memory that its watchdog shares.

The watchdog is a process of its own (`watchdog.py`): a thread would not run while another one holds the GIL, and no
thread runs in a process that is stopped.
"""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytorch_lightning as pl

from trainer.clock import BETWEEN_STEPS, STATES, State, StepClock
from trainer.config.schema import Config
from trainer.faults.hang_page import REPORT_WITHIN_S, hang_announced
from trainer.faults.watchdog import ALL_STACKS_SIGNAL, LAYOUT, STACK_SIGNAL, Limits, Watched
from trainer.world import World

RECENT_STEPS = 50  # of which the longest counts
# A run that ends before has no watchdog, which takes a tenth of a second to start.
START_AFTER_S = 10.0


MIN_LIMIT_S = 60.0


def limits_of(config: Config) -> Limits | None:
    """How long a step may take; None where nothing watches, as where there is no /proc to read."""
    limit, longest_s = config.launch.hang_timeout_s, config.launch.timeout_s
    if limit is None or sys.platform != "linux":
        return None
    # A step that is compiled again may take minutes.
    floor_s = longest_s if config.performance.compile else MIN_LIMIT_S
    return Limits(None if limit == "auto" else limit, floor_s, longest_s)


class Heartbeat(pl.Callback):
    """Observes the clock in training, and starts this rank's watchdog once training has gone on for a while.

    The clock's states are those of the host also on a GPU, where only their times are the device's.
    """

    def __init__(self, config: Config, world: World, run_dir: Path, clock: StepClock) -> None:
        self.clock, self.world, self.run_dir = clock, world, run_dir
        self.limits = limits_of(config)
        self.process: subprocess.Popen[bytes] | None = None
        self.recent: deque[int] = deque(maxlen=RECENT_STEPS)
        self.step = self.base_ns = self.started_ns = self.longest_ns = 0
        self.between_steps = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook: observe from here."""
        if self.limits is None:
            return
        self.memory, self.stacks = os.memfd_create("heartbeat"), os.memfd_create("stacks")
        os.ftruncate(self.memory, mmap.PAGESIZE)
        self.page = mmap.mmap(self.memory, mmap.PAGESIZE)
        self.step = trainer.global_step
        self.announced_s = hang_announced(self.run_dir)
        self.started_ns = self.base_ns = time.monotonic_ns()
        self.clock.heartbeat = self

    def on_state(self, state: State, network: str) -> None:
        """See trainer.clock.Observer."""
        now = time.monotonic_ns()
        between = state in BETWEEN_STEPS or self.clock.is_paused
        if self.between_steps and not between:
            # An evaluation may take any time, and the step after it starts here.
            self.base_ns = now
        self.between_steps = between
        name = network.encode()[:32]
        LAYOUT.pack_into(
            self.page, 0, self.step, self.base_ns, now, self.longest_ns, STATES.index(state), between, name
        )

    def on_step_end(self) -> None:
        """See trainer.clock.Observer."""
        now = time.monotonic_ns()
        self.recent.append(now - self.base_ns)
        self.longest_ns = max(self.recent)
        self.step, self.base_ns = self.step + 1, now
        self.on_state(self.clock.state, self.clock.network)
        assert self.limits is not None
        delay_s = min(START_AFTER_S, (self.limits.seconds or START_AFTER_S) / 4)
        if self.process is None and now - self.started_ns > delay_s * 1e9:
            self._start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's hook: what follows is no step."""
        if self.clock.heartbeat is None:
            return
        self.clock.heartbeat = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            faulthandler.unregister(STACK_SIGNAL)
            faulthandler.unregister(ALL_STACKS_SIGNAL)
        self.page.close()
        os.close(self.memory)
        os.close(self.stacks)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Lightning's hook: the same, but the watchdog that is about to report, and to end this rank, does so."""
        if self.process is not None and hang_announced(self.run_dir) != self.announced_s:
            # The exception follows from the hang, such as a connection to a rank that has been ended.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(REPORT_WITHIN_S)
        self.on_train_end(trainer, pl_module)

    def _start(self) -> None:
        assert self.limits is not None
        faulthandler.register(STACK_SIGNAL, file=self.stacks, all_threads=False)
        faulthandler.register(ALL_STACKS_SIGNAL, file=self.stacks, all_threads=True)
        watched = Watched(
            pid=os.getpid(),
            main_thread=threading.main_thread().ident or 0,
            rank=self.world.rank,
            world_size=self.world.world_size,
            prints=self.world.rank == 0 and self.world.launcher != "elastic",
            run_dir=str(self.run_dir.absolute()),
            states=list(STATES),
            memory=self.memory,
            stacks=self.stacks,
            limits=self.limits,
        )
        # Where this package is: the working directory is not searched, and need not have it.
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer.faults.watchdog", json.dumps(asdict(watched))],
            pass_fds=(self.memory, self.stacks),
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
        )

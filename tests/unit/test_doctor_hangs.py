"""The doctor ends and reports checks and child processes that hang, and waits for those that are only slow."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import SPIRALS_WORDS
from watching import wait_until

from trainer.config.compose import compose_mapping, typed
from trainer.config.schema import Config
from trainer.verbs.doctor import examine
from trainer.verbs.doctor.child import run_child, waits_for_child
from trainer.verbs.doctor.report import Finding
from trainer.world import World

ONE_RANK = World("single", "cpu", 1, 1, 1)


def config() -> Config:
    return typed(compose_mapping(SPIRALS_WORDS))[0]


def test_a_check_that_hangs_or_raises_is_a_finding() -> None:
    forever = threading.Event()

    def check_mount(config: Config, world: World) -> Iterator[Finding]:
        yield Finding("mount", "ok", "seen")
        forever.wait()

    def check_driver(config: Config, world: World) -> Iterator[Finding]:
        yield Finding("driver", "ok", "seen")
        raise OSError("no such device")

    found = examine([check_mount, check_driver], config(), ONE_RANK, answer_s=0.5)
    forever.set()
    assert [(f.name, f.status) for f in found] == [
        ("mount", "ok"), ("mount", "failure"), ("driver", "ok"), ("driver", "failure"),
    ]  # fmt: skip
    assert "no answer within 0.5 s" in found[1].found
    assert "OSError: no such device" in found[3].found
    assert found[1].remedy
    assert found[3].remedy


def test_a_check_whose_child_works_longer_is_waited_for() -> None:
    waited = threading.Event()

    def check_slow(config: Config, world: World) -> Iterator[Finding]:
        # Time for an answer passes while the child is at work.
        child = run_child([sys.executable, "-c", "import time; time.sleep(1.5); print('done')"])
        waited.set()
        yield Finding("slow", "ok", child.output.strip())

    (found,) = examine([check_slow], config(), ONE_RANK, answer_s=1.0)
    assert waited.is_set()
    assert (found.status, found.found) == ("ok", "done")
    assert not waits_for_child(threading.get_ident())


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_child_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    script = f"setsid sleep 600 & echo $! > {tmp_path}/started; echo waiting >&2; wait"
    child = run_child(["bash", "-c", script], stall_s=1.0)
    assert child.code is None
    assert child.error_line == "no answer, the last line was: waiting"
    wait_until(lambda: not lives(int((tmp_path / "started").read_text())), 60)


def test_a_slow_child_is_not_killed() -> None:
    """It works longer than a child may be idle, on cores that other processes keep busy."""
    code = "import time\nwhile time.process_time() < 1.5: pass\nprint('done')"
    command = [sys.executable, "-c", code]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        child = run_child(command, stall_s=1.0)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert (child.code, child.output.strip()) == (0, "done")


def test_a_child_that_spins_is_killed_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.verbs.doctor.child.LONGEST_S", 0.5)
    assert run_child([sys.executable, "-c", "while True: pass"], stall_s=1.0).code is None

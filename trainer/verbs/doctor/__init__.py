"""The verb doctor: pre-flight checks of a configuration on this machine.

Checks are generators `(Config, World) -> Iterator[Finding]` in files named after what they examine. Each runs in a
thread of its own, and what may hang or crash, such as a driver, in a child process. Only those import torch, and a task
that counts its networks' parameters.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from rich.console import Console

from trainer.config.compose import compose_mapping, typed
from trainer.config.schema import Config
from trainer.errors import EXIT_DONE, EXIT_USER
from trainer.verbs.doctor.all_reduce import check_all_reduce
from trainer.verbs.doctor.child import end_children, waits_for_child
from trainer.verbs.doctor.cluster import check_slurm
from trainer.verbs.doctor.configuration import check_configuration, find_world
from trainer.verbs.doctor.devices import check_gpus
from trainer.verbs.doctor.limits import check_open_files, check_shared_memory
from trainer.verbs.doctor.network import check_network, check_wandb
from trainer.verbs.doctor.operators import check_compiler, check_deepspeed
from trainer.verbs.doctor.report import Check, Finding, as_json, failures, print_table, without_repetitions
from trainer.verbs.doctor.software import check_packages, check_python, check_shadows, check_torchvision
from trainer.verbs.doctor.storage import check_cache, check_data, check_outputs
from trainer.verbs.prepare import take_options
from trainer.world import World

__all__ = ["doctor"]

CHECKS: tuple[Check, ...] = (
    check_python,
    check_packages,
    check_shadows,
    check_torchvision,
    check_gpus,
    check_compiler,
    check_deepspeed,
    check_data,
    check_outputs,
    check_cache,
    check_shared_memory,
    check_open_files,
    check_network,
    check_wandb,
    check_slurm,
)
# How long a check may take besides its children, which have limits of their own: a mount or a name server may hang.
ANSWER_S = 60.0
# The all-reduce starts alone, so that other checks do not slow down what it measures.
HEAD_START_S = 10.0
POLL_S = 0.05


def doctor(words: Sequence[str]) -> int:
    """Check this machine for a configuration and print the findings. Returns: exit code; 2 where a run would fail.

    Raises: UserError: the configuration is invalid on any machine.
    """
    to_json = "--json" in words
    options, overrides = take_options([word for word in words if word != "--json"])
    start = time.monotonic()
    config, task = typed(compose_mapping(overrides, options.config_dirs))
    world, findings = find_world(config)
    findings += check_configuration(config, task, world)
    if world.joined and world.rank != 0:
        # The other ranks only take part in rank 0's all-reduce.
        _Examination(check_all_reduce, config, world).run()
        return EXIT_DONE
    shown = nullcontext() if to_json else Console(stderr=True).status("doctor: all-reduce")
    with shown as status:
        reduction = _Examination(check_all_reduce, config, world)
        reduction.start()
        reduction.join(HEAD_START_S)
        if status is not None:
            status.update(f"doctor: {len(CHECKS)} checks")
        findings += examine(CHECKS, config, world)
        findings += wait_for([reduction], ANSWER_S)
    findings = without_repetitions(findings)
    end_children()
    time_s = round(time.monotonic() - start, 2)
    if to_json:
        print(as_json(findings, time_s))
    else:
        print_table(findings, time_s)
    sys.stdout.flush()
    return EXIT_USER if failures(findings) else EXIT_DONE


def examine(checks: Sequence[Check], config: Config, world: World, answer_s: float = ANSWER_S) -> list[Finding]:
    """Run checks at the same time. Args: answer_s: see wait_for. Returns: findings in the order of the checks."""
    examinations = [_Examination(check, config, world) for check in checks]
    for examination in examinations:
        examination.start()
    return wait_for(examinations, answer_s)


def wait_for(examinations: Sequence[_Examination], answer_s: float) -> list[Finding]:
    """Wait until each has ended, or has neither ended nor had a child for answer_s. Returns: all findings."""
    last_child = dict.fromkeys(examinations, time.monotonic())
    pending = [*examinations]
    while pending:
        now = time.monotonic()
        last_child |= {examination: now for examination in pending if waits_for_child(examination.ident)}
        pending = [one for one in pending if one.is_alive() and now - last_child[one] < answer_s]
        time.sleep(POLL_S if pending else 0.0)
    return [finding for examination in examinations for finding in examination.result(answer_s)]


class _Examination(threading.Thread):
    """One check in a thread; a daemon, so that a check that hangs does not keep the process alive."""

    def __init__(self, check: Check, config: Config, world: World) -> None:
        self.title = check.__name__.removeprefix("check_").replace("_", " ")
        super().__init__(name=self.title, daemon=True)
        self.check, self.config, self.world = check, config, world
        self.findings: list[Finding] = []

    def run(self) -> None:
        """Collect the findings. An exception of the check becomes one, too."""
        start = time.monotonic()
        try:
            for finding in self.check(self.config, self.world):
                self.findings.append(replace(finding, time_s=round(time.monotonic() - start, 3)))
                start = time.monotonic()
        except Exception as error:  # noqa: BLE001 - what breaks a check may break a run, and is reported as a finding
            found = f"the check ended with {type(error).__name__}: {error}"
            remedy = "fix what it names; if this machine is in order, it is a bug in trainer/verbs/doctor"
            self.findings.append(Finding(self.title, "failure", found, remedy))

    def result(self, answer_s: float) -> list[Finding]:
        """The findings so far, with a failure where the check still runs."""
        findings = list(self.findings)
        if self.is_alive():
            remedy = "a mount or a name server does not answer: try it by hand"
            findings.append(Finding(self.title, "failure", f"no answer within {answer_s:g} s", remedy))
        return findings

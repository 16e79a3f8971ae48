"""The verb doctor: what would end a run of this configuration on this machine, found before it starts.

Checks are generators `(Config, World) -> Iterator[Finding]` in files named after what they look at. Each runs in a
thread of its own with a time limit, and what may hang or crash, such as a driver, in a child process. Only those
import torch, and a task that counts its network's parameters.
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
from trainer.verbs.doctor.child import end_children
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
# All of it, with what is waited for in vain.
TIME_LIMIT_S = 28.0
# As long the ranks have the machine, its cores and its network, to themselves.
HEAD_START_S = 10.0


def doctor(words: Sequence[str]) -> int:
    """Examine this machine for a configuration. Returns: exit code; 2 where a run would fail. Raises: UserError."""
    to_json = "--json" in words
    options, overrides = take_options([word for word in words if word != "--json"])
    start = time.monotonic()
    config, task = typed(compose_mapping(overrides, options.config_dirs))
    world, findings = find_world(config)
    findings += check_configuration(config, task, world)
    if world.joined and world.rank != 0:
        # The others examine their own nodes no further: they are rank 0's peers in its all-reduce.
        _Examination(check_all_reduce, config, world).run()
        return EXIT_DONE
    shown = nullcontext() if to_json else Console(stderr=True).status("doctor: the ranks meet")
    with shown as status:
        reduction = _Examination(check_all_reduce, config, world)
        reduction.start()
        reduction.join(HEAD_START_S)
        if status is not None:
            status.update(f"doctor: {len(CHECKS)} checks")
        findings += examine(CHECKS, config, world, start + TIME_LIMIT_S)
        reduction.join(max(0.0, start + TIME_LIMIT_S - time.monotonic()))
    findings = without_repetitions([*findings, *reduction.result()])
    end_children()
    time_s = round(time.monotonic() - start, 2)
    if to_json:
        print(as_json(findings, time_s))
    else:
        print_table(findings, time_s)
    sys.stdout.flush()
    return EXIT_USER if failures(findings) else EXIT_DONE


def examine(checks: Sequence[Check], config: Config, world: World, deadline: float) -> list[Finding]:
    """Do checks at the same time. Args: deadline: by the monotonic clock. Returns: findings in the checks' order."""
    examinations = [_Examination(check, config, world) for check in checks]
    for examination in examinations:
        examination.start()
    findings = []
    for examination in examinations:
        examination.join(max(0.0, deadline - time.monotonic()))
        findings += examination.result()
    return findings


class _Examination(threading.Thread):
    """One check at work; a daemon, so that one that hangs does not keep the process."""

    def __init__(self, check: Check, config: Config, world: World) -> None:
        self.title = check.__name__.removeprefix("check_").replace("_", " ")
        super().__init__(name=self.title, daemon=True)
        self.check, self.config, self.world = check, config, world
        self.findings: list[Finding] = []

    def run(self) -> None:
        """Collect findings, the check's own failure among them."""
        start = time.monotonic()
        try:
            for finding in self.check(self.config, self.world):
                self.findings.append(replace(finding, time_s=round(time.monotonic() - start, 3)))
                start = time.monotonic()
        except Exception as error:  # noqa: BLE001 - what breaks a check may break a run, and is told as a finding
            found = f"the check ended with {type(error).__name__}: {error}"
            remedy = "mend what it names; if nothing of this machine is wrong, it is a mistake in trainer/doctor"
            self.findings.append(Finding(self.title, "failure", found, remedy))

    def result(self) -> list[Finding]:
        """What was found, and that it was not all, where the check is still at work."""
        findings = list(self.findings)
        if self.is_alive():
            remedy = "a driver, a mount or a name server does not answer: try it by hand"
            findings.append(Finding(self.title, "failure", f"no answer within {TIME_LIMIT_S:g} s", remedy))
        return findings

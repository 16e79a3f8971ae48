"""Freed tensors are reused without asking the kernel."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a separate process: the setting is permanent, and allocations of other tests would count.
COUNT_FAULTS = """
import resource, torch
from trainer.engine.host_memory import keep_freed_memory
assert not {kept} or keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def page_faults(kept: bool) -> int:
    code = COUNT_FAULTS.format(kept=kept)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
def test_freed_tensors_are_reused() -> None:
    assert page_faults(kept=True) < page_faults(kept=False) / 10

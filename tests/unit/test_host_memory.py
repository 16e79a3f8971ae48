"""Freed tensors are used again without the kernel's help."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a process of its own: the setting stays, and other tests' allocations would blur the count.
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_freed_tensors_are_used_again() -> None:
    assert page_faults(kept=True) < page_faults(kept=False) / 10

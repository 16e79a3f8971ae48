"""DeepSpeed as a run imports it: `python -m trainer.verbs.doctor.deepspeed_probe ACCELERATOR [BUILDER ...]`.

A line of JSON: versions, compilers, and for each builder why its operator cannot be built.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from typing import Any

import torch
from torch.utils.cpp_extension import get_cxx_compiler, is_ninja_available

from trainer.strategies.deepspeed import import_deepspeed


def main() -> None:
    """Print the report; DeepSpeed's own output goes to standard error."""
    accelerator, *builders = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        deepspeed = import_deepspeed(torch.device(accelerator))
        operators = {name: reason_against(deepspeed, name) for name in builders}
    compiler = get_cxx_compiler()
    report = {
        "version": deepspeed.__version__,
        "accelerator": accelerator,
        "operators": operators,
        "wanted_compiler": compiler,
        "compiler": shutil.which(compiler),
        "ninja": is_ninja_available(),
    }
    print(json.dumps(report))


def reason_against(deepspeed: Any, name: str) -> str | None:
    """DeepSpeed's own reason why an operator cannot be built; None where it can."""
    builder = deepspeed.accelerator.get_accelerator().create_op_builder(name)
    if builder is None:
        return "there is none for this accelerator"
    try:
        compatible = builder.is_compatible(verbose=True)
    except Exception as error:  # noqa: BLE001 - DeepSpeed's checks raise plain exceptions of many kinds
        return str(error).strip().splitlines()[0]
    return None if compatible else (builder.error_log or "DeepSpeed gives no reason")


if __name__ == "__main__":
    main()

"""The format aot_inductor: the program compiled to machine code for this processor."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.data.cache import use_private_compiler_cache
from trainer.errors import UserError
from trainer.export.processing import Arrays
from trainer.export.program import trace
from trainer.export.quiet import quiet
from trainer.export.source import Source

PACKAGE_FILE = "model.pt2"


def write(source: Source, folder: Path) -> None:
    """Compile the traced network. Raises: UserError: there is no C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(f"format=aot_inductor: needs a C++ compiler, and there is no {compiler}", "name one with CXX=")
    use_private_compiler_cache()
    with quiet():
        torch._inductor.aoti_compile_and_package(trace(source), package_path=str(folder / PACKAGE_FILE))


def open_network(folder: Path, gpu: int | None) -> Any:
    """The compiled network as a function of arrays; this runs its machine code, which is for the CPU."""
    del gpu
    try:
        network = torch._inductor.aoti_load_package(str(folder / PACKAGE_FILE))
    except RuntimeError as error:
        raise UserError(f"{folder / PACKAGE_FILE}: cannot be loaded ({str(error).splitlines()[0][:160]})") from error

    @torch.inference_mode()
    def forward(arrays: Arrays) -> np.ndarray:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return network(**tensors).float().numpy()

    return forward


def instruction_set() -> str:
    """Of this processor, as torch compiles for it, such as "x86_64 AVX2"."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

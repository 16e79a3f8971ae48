"""A process that runs a trained network in one way, for its memory: `python -m trainer.verbs.bench.one_way`.

Words: the run's directory, the way, a .npz file of arguments, and the further words of `bench inference`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.export import load
from trainer.export.model import Network
from trainer.run.files import EXPORT_DIR


def peak_mib() -> float:
    """The most resident memory that this process has had (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 2**10


def _opened(run_dir: Path, name: str, words: Sequence[str]) -> Network:
    """Nothing but what this way needs is imported: an export in ONNX needs no torch."""
    folder = run_dir / EXPORT_DIR / name
    if folder.is_dir():
        return load(folder, allow_native_code=True).forward
    import torch

    from trainer.inference import float32
    from trainer.verbs.bench.networks import builders
    from trainer.verbs.stored_run import changed_config

    stored = changed_config("export", run_dir, words)
    return builders(stored.task.load_inference(float32(stored.config), run_dir, torch.device("cpu")).network)[name]()


if __name__ == "__main__":
    directory, way, arguments, *others = sys.argv[1:]
    forward = _opened(Path(directory), way, others)
    with np.load(arguments) as arrays:
        forward(dict(arrays))
    print(peak_mib())

"""Whether this checkout trains as another commit does: `python -m benchmarks.same_curves COMMIT [TASK...]`.

100 steps of each default task with both; compares every train/ and optim/ value of metrics.jsonl and the weights after
the last step, bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.weights import read_state
from trainer.run.metrics_file import read_metrics

CHECKOUT = Path(__file__).resolve().parents[1]
COMMON = ["logger=none", "trainer.accelerator=cpu", "trainer.max_steps=100", "trainer.log_every_n_steps=1"]


def train(checkout: Path, task: str, root: Path) -> Path:
    """100 steps of a task with the code of a checkout. Returns: the run directory."""
    root.mkdir()
    command = [sys.executable, "-m", "trainer", f"task={task}", *COMMON]
    environment = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(root)}
    subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
    (record,) = root.glob("outputs/*/*/run.json")
    return record.parent


def curves(run: Path) -> Mapping[int, Mapping[str, Any]]:
    """Values of training by step."""
    lines = [{k: v for k, v in line.items() if k.startswith(("train/", "optim/"))} for line in read_metrics(run)]
    return {line["step"]: values for line, values in zip(read_metrics(run), lines, strict=True) if values}


def differences(ours: Path, theirs: Path) -> list[str]:
    """What differs between two runs, a line each; values that only one of them has are not compared."""
    found = []
    own, other = curves(ours), curves(theirs)
    if own.keys() != other.keys() or len(own) < 100:
        found.append(f"{len(own)} logged steps against {len(other)}")
    shared = set.intersection(*(set(line) for line in [*own.values(), *other.values()]))
    found += [
        f"step {step} {key}: {own[step][key]} against {other[step][key]}"
        for step in own.keys() & other.keys()
        for key in sorted(shared)
        if own[step][key] != other[step][key]
    ]
    weights, others = (read_state(run / "checkpoints" / "last" / "state.ckpt")["state_dict"] for run in (ours, theirs))
    if weights.keys() != others.keys():
        found.append(f"tensors: {sorted(weights.keys() ^ others.keys())[:3]}")
    found += [name for name in weights.keys() & others.keys() if not torch.equal(weights[name], others[name])]
    print(f"  {len(own)} steps, {len(shared)} values each ({', '.join(sorted(shared))}), {len(weights)} tensors")
    return found


def main(commit: str, tasks: list[str]) -> int:
    """Returns: 0 where all tasks are equal, else 1."""
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subprocess.run(["git", "-C", CHECKOUT, "worktree", "add", "--detach", base, commit], check=True)
        try:
            for task in tasks:
                ours, theirs = (
                    train(checkout, task, Path(folder) / f"{side}-{task}")
                    for side, checkout in (("ours", CHECKOUT), ("theirs", base))
                )
                print(task)
                found = differences(ours, theirs)
                failed |= bool(found)
                print("  equal bit for bit" if not found else "\n".join(["  differs:", *found[:5]]))
        finally:
            subprocess.run(["git", "-C", CHECKOUT, "worktree", "remove", "--force", base], check=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:] or ["cnn", "dcgan", "bert"]))

"""Everything measured on a GPU, one section each, into benchmarks/results/<date>-gpu.md: `make gpu`."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import torch

from benchmarks.result_file import RESULTS
from trainer.run.provenance import package_versions

SECTIONS = ("benchmarks.gpu_cnn", "benchmarks.gpu_bert", "benchmarks.gpu_dcgan")


def main() -> int:
    """Run each section as its own process, so that none measures with the memory that another has left."""
    if not torch.cuda.is_available():
        print("no CUDA device is visible: nothing to measure", file=sys.stderr)
        return 2
    properties = torch.cuda.get_device_properties(0)
    today = datetime.now(UTC).date().isoformat()
    text = [
        f"# GPU measurements, {today}",
        "",
        f"`make gpu` on {torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB; "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "",
        ", ".join(f"{name} {version}" for name, version in package_versions().items() if version),
        "",
    ]
    failed = 0
    for section in SECTIONS:
        print(f"{section} ...", flush=True)
        done = subprocess.run([sys.executable, "-m", section], stdout=subprocess.PIPE, text=True, check=False)
        failed += done.returncode != 0
        text += [f"## {section}", "", done.stdout.strip() or f"failed with exit code {done.returncode}", ""]
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{today}-gpu.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

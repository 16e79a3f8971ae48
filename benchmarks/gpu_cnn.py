"""ResNet-18 on images of CIFAR-10's shape on one GPU: eager fp32 against bf16, channels_last and torch.compile.

Prints a Markdown table. Images are drawn at random, since throughput does not depend on what they show, and are kept on
the device as CIFAR-10 would be.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.run.metrics_file import read_metrics

NUM_TRAIN, NUM_TEST, NUM_EPOCHS = 50_000, 1_000, 4
FP32, BF16 = "trainer.precision=32-true", "trainer.precision=bf16-mixed"
EAGER, COMPILED = "performance.compile=false", "performance.compile=true"
NCHW, NHWC = "performance.channels_last=false", "performance.channels_last=true"
VARIANTS = {
    "fp32 (TF32), eager": [FP32, EAGER, NCHW],
    "bf16, eager": [BF16, EAGER, NCHW],
    "bf16, channels_last": [BF16, EAGER, NHWC],
    "bf16, channels_last, compile": [BF16, COMPILED, NHWC],
}


def write_images(folder: Path) -> None:
    """A data set laid out as on the hub."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    draw = np.random.default_rng(0)
    features = Features({"img": ImageFeature(), "label": ClassLabel(num_classes=10)})
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        rows = []
        for pixels in draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "BMP")
            rows.append({"bytes": file.getvalue(), "path": None})
        labels = draw.integers(0, 10, count).tolist()
        Dataset.from_dict({"img": rows, "label": labels}, features=features).to_parquet(folder / f"{split}.parquet")


def measure(words: list[str], data: Path, root: Path) -> tuple[float, float, float, float | None]:
    """Returns: samples/s of the first logged line (cold) and the median afterwards (warm), peak GiB, MFU."""
    command = [sys.executable, "-m", "trainer", "experiment=cnn_resnet18_cifar10", f"data.path={data}", "logger=none"]
    lengths = [f"trainer.max_epochs={NUM_EPOCHS}", "trainer.devices=1", f"run.root={root}", "run.fresh=true"]
    subprocess.run([*command, *lengths, *words], check=True, stdout=sys.stderr)
    (run,) = (root / "cnn").iterdir()
    lines = [line for line in read_metrics(run) if "perf/samples_per_s" in line]
    rates = [line["perf/samples_per_s"] for line in lines]
    warm = lines[len(lines) // 2 :]
    mfu = [line["perf/mfu"] for line in warm if "perf/mfu" in line]
    median = float(np.median([line["perf/samples_per_s"] for line in warm]))
    return rates[0], median, lines[-1]["perf/peak_memory_gib"], float(np.median(mfu)) if mfu else None


def main() -> None:
    """One row a variant."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "images"
        data.mkdir()
        write_images(data)
        print("| ResNet-18, 32x32, batch of the recipe | cold samples/s | warm samples/s | peak GiB | MFU |")
        print("|---|---|---|---|---|")
        for number, (name, words) in enumerate(VARIANTS.items()):
            cold, warm, peak_gib, mfu = measure(words, data, Path(folder) / f"runs-{number}")
            shown = "not listed" if mfu is None else f"{mfu:.3f}"
            print(f"| {name} | {cold:,.0f} | {warm:,.0f} | {peak_gib:.2f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()

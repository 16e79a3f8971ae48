"""The default DCGAN on the embedded digits, judged by a classifier of ours.

    python -m benchmarks.dcgan_digits

Trains the default classifier, then the default DCGAN, timed with start-up, then the same DCGAN once more with scores in
the classifier's features; generates 1,000 images and lets the classifier sort them. Writes a dated file under
benchmarks/results/ and the grids under docs/images/.
"""

from __future__ import annotations

import collections
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.result_file import surroundings, write_result
from tasks.dcgan.features import load_classifier

HOME = Path(__file__).resolve().parents[1]
IMAGES = HOME / "docs" / "images"
NUM_GENERATED, LONGEST_S, SMALLEST_FALL = 1_000, 300.0, 5.0
COMMON = ["logger=none", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]


def trainer(folder: Path, *words: str) -> float:
    """python -m trainer WORDS in a directory. Returns: seconds, start-up included."""
    start = time.perf_counter()
    path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "trainer", *words]
    subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def classified(folder: Path, run_dir: Path) -> tuple[list[int], float]:
    """Returns: how many of the generated images the classifier puts into each class, and its median certainty."""
    pixels = [np.asarray(Image.open(path)) for path in sorted(run_dir.glob("samples/generated-*/[0-9]*.png"))]
    classifier = load_classifier(folder / "outputs" / "cnn" / "judge")
    with torch.no_grad():
        probabilities = classifier.logits(torch.from_numpy(np.stack(pixels))[:, None]).softmax(dim=1)
    counts = collections.Counter(probabilities.argmax(dim=1).tolist())
    return [counts[digit] for digit in range(10)], probabilities.max(dim=1).values.median().item()


def report(seconds: float, accuracy: float, scores: list[dict[str, float]], counts: list[int], certainty: float) -> str:
    """The dated file."""
    first, last = scores[0], scores[-1]
    fall = first["frechet_distance"] / last["frechet_distance"]
    return "\n".join(
        [
            f"# DCGAN on the embedded digits, {datetime.date.today()}",
            "",
            "    python -m benchmarks.dcgan_digits",
            "",
            "| what | measured | goal |",
            "| --- | --- | --- |",
            f"| `python -m trainer task=dcgan`, wall time with start-up | {seconds:.0f} s | under {LONGEST_S:.0f} s |",
            f"| Frechet distance at step {first['step']} | {first['frechet_distance']:.1f} | |",
            f"| Frechet distance at step {last['step']}, the last | {last['frechet_distance']:.1f} | |",
            f"| first / last | {fall:.1f} | at least {SMALLEST_FALL:.0f} |",
            f"| classes among {sum(counts):,} generated digits | {sum(map(bool, counts))} | 10 |",
            "",
            f"Generated digits by class, 0 to 9: {', '.join(map(str, counts))}; the classifier's median certainty is",
            f"{certainty:.2f}. Its accuracy on real digits it has not seen: {accuracy:.3f}. Distances by the protocol:",
            "",
            f"    {json.dumps({name: last[name] for name in PROTOCOL})}",
            "",
            *surroundings("no GPU", "torch", "pytorch-lightning"),
            "",
        ]
    )


PROTOCOL = ("network", "sha256", "num_features", "preprocessing", "num_images")


def main() -> int:
    """Train, judge, print and write. Returns: 0 when the goals are met."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer(folder, "task=cnn", *COMMON, "run.name=judge")
        seconds = trainer(folder, "task=dcgan", *COMMON, "run.name=timed")
        judge = "task.features=run:outputs/cnn/judge"
        trainer(folder, "task=dcgan", *COMMON, "run.name=judged", judge)
        run_dir = folder / "outputs" / "dcgan" / "judged"
        os.chdir(folder)
        trainer(folder, "predict", f"run={run_dir}", f"n={NUM_GENERATED}")
        lines = (run_dir / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        scores = [json.loads(line) for line in lines]
        counts, certainty = classified(folder, run_dir)
        text = report(seconds, judge_accuracy(folder), scores, counts, certainty)
        keep_pictures(run_dir)
    write_result("dcgan-digits", text)
    fall = scores[0]["frechet_distance"] / scores[-1]["frechet_distance"]
    return 0 if seconds < LONGEST_S and fall >= SMALLEST_FALL and all(counts) else 1


def judge_accuracy(folder: Path) -> float:
    """Of the classifier on digits held out of its training, the best evaluation."""
    lines = (folder / "outputs" / "cnn" / "judge" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(metrics["val/accuracy"] for metrics in map(json.loads, lines) if "val/accuracy" in metrics)


def keep_pictures(run_dir: Path) -> None:
    """Copy the last grid and the strip to the documentation."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    grids = sorted(run_dir.glob("samples/step-*.png"))
    shutil.copy(grids[-1], IMAGES / "dcgan_digits_grid.png")
    shutil.copy(run_dir / "samples" / "strip.png", IMAGES / "dcgan_digits_over_time.png")


if __name__ == "__main__":
    sys.exit(main())

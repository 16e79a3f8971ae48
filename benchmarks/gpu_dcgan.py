"""DCGAN at 64x64 on one GPU: the trainer's step against an ordinary alternating loop, in turns in one process.

Prints a Markdown table. Both see the same random images, which are kept on the device, in blocks of steps one after the
other; the device is waited for at the ends of blocks only. The ordinary loop runs as tutorials have it: fp32 with
cuDNN's TF32, eager, `.item()` on what it logs. Goals: 5 times at batch 64, where launches bound it, 3 times at 512.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from benchmarks.dcgan_plain import PlainDCGAN
from tasks.dcgan.data import GanImages
from trainer.data.images.batches import ImageSet
from trainer.engine.build import build_data_and_module, build_trainer
from trainer.observe.metrics import TrainingMetrics
from trainer.verbs.prepare import Options, prepare

IMAGE_SIZE, WIDTH, NUM_IMAGES = 64, 64, 16_384
BATCH_SIZES = (64, 128, 512)
BLOCK_STEPS, NUM_BLOCKS, NUM_WARM_UP_BLOCKS = 30, 12, 2
GOALS = {64: 5.0, 512: 3.0}
FP32, BF16 = "trainer.precision=32-true", "trainer.precision=bf16-mixed"
# Compilation by name of torch.compile's mode; reduce-overhead replays CUDA graphs.
VARIANTS: dict[str, tuple[list[str], str | None]] = {
    "fp32 (TF32), eager": ([FP32], None),
    "bf16, eager": ([BF16], None),
    "bf16, compile": ([BF16], "default"),
    "bf16, compile, CUDA graphs": ([BF16], "reduce-overhead"),
}


class Blocks(pl.Callback):
    """Times the trainer's blocks of steps, and between two of them a block of ordinary steps.

    ours_s, ordinary_s: seconds of each block.
    """

    def __init__(self, plain: PlainDCGAN, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.plain, self.batches = plain, batches
        self.ours_s: list[float] = []
        self.ordinary_s: list[float] = []
        self.start = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Ordinary steps at the start of a block."""
        if trainer.global_step % BLOCK_STEPS:
            return
        torch.cuda.synchronize()
        start = time.perf_counter()
        for real, noise in islice(self.batches, BLOCK_STEPS):
            self.plain.step(real, noise)
        torch.cuda.synchronize()
        self.start = time.perf_counter()
        self.ordinary_s.append(self.start - start)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The end of a block."""
        if trainer.global_step % BLOCK_STEPS == 0:
            torch.cuda.synchronize()
            self.ours_s.append(time.perf_counter() - self.start)


def measure(batch_size: int, words: list[str], mode: str | None) -> tuple[float, float, float, float]:
    """Returns: images/s of the trainer and of the ordinary loop, median ratio of neighbouring blocks, peak GiB."""
    steps = f"trainer.max_steps={BLOCK_STEPS * NUM_BLOCKS}"
    plan = prepare([*base_words(batch_size), steps, *words], Options())
    data, module = build_data_and_module(plan.config, plan.task, plan.world)
    pixels = torch.randint(0, 256, (NUM_IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, device="cuda")
    images = ImageSet(pixels, np.zeros(NUM_IMAGES, dtype=np.int64), np.arange(NUM_IMAGES), seed=0)
    model: Any = plan.config.model
    data.sets = {"train": GanImages(images, model.latent_size, 0, 1)}
    plain = plain_of(module)
    if mode is not None:
        for network in module.networks().values():
            network.compile(mode=mode)
    blocks = Blocks(plain, random_batches(pixels, batch_size, model.latent_size))
    options = plan.config.trainer
    metrics = TrainingMetrics(options.log_every_n_steps, options.precision, module.clock)
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(plan.config, plan.world, Path(folder), [metrics, blocks], [])
        trainer.fit(module, datamodule=data)
    ours, ordinary = blocks.ours_s[NUM_WARM_UP_BLOCKS:], blocks.ordinary_s[NUM_WARM_UP_BLOCKS:]
    rates = [batch_size * BLOCK_STEPS / statistics.median(times) for times in (ours, ordinary)]
    ratio = statistics.median(b / a for a, b in zip(ours, ordinary, strict=True))
    return rates[0], rates[1], ratio, torch.cuda.max_memory_allocated() / 2**30


def base_words(batch_size: int) -> list[str]:
    """The task at 64x64 RGB, on one GPU, without anything but steps."""
    return [
        "task=dcgan",
        "logger=none",
        "trainer.accelerator=cuda",
        "trainer.devices=1",
        "trainer.enable_progress_bar=false",
        "trainer.limit_val_batches=0",
        "trainer.max_epochs=null",
        f"data.image_size={IMAGE_SIZE}",
        "data.channels=3",
        f"model.width={WIDTH}",
        "task.ema_decay=null",
        "task.sample_every_n_steps=1000000",
        f"batch.global_size={batch_size}",
    ]


def plain_of(module: Any) -> PlainDCGAN:
    """The ordinary loop from the same weights, in the ordinary memory order."""
    networks = {
        name: copy.deepcopy(network).to("cuda", memory_format=torch.contiguous_format)
        for name, network in module.networks().items()
    }
    return PlainDCGAN(networks["discriminator"], networks["generator"], lambda name: list(networks[name].parameters()))


def random_batches(
    pixels: torch.Tensor, batch_size: int, latent_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images in [-1, 1] and noise, made on the device, so that data costs the ordinary loop next to nothing."""
    while True:
        rows = torch.randint(0, len(pixels), (batch_size,), device="cuda")
        yield pixels[rows].float() / 127.5 - 1, torch.randn(batch_size, latent_size, device="cuda")


def main() -> None:
    """One row a variant and batch size."""
    print("| DCGAN, 64x64, batch | trainer's variant | images/s | ordinary images/s | ratio | goal | peak GiB, both |")
    print("|---|---|---|---|---|---|---|")
    for batch_size in BATCH_SIZES:
        for name, (words, mode) in VARIANTS.items():
            ours, ordinary, ratio, peak_gib = measure(batch_size, words, mode)
            goal = GOALS.get(batch_size, "")
            row = f"| {batch_size} | {name} | {ours:,.0f} | {ordinary:,.0f} | {ratio:.2f} | {goal} | {peak_gib:.2f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()

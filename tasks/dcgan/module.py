"""The game of two networks, one step at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from tasks.dcgan.config import IMAGE_SIZES, DCGANConfig, DCGANModel
from tasks.dcgan.data import DCGANData, GanBatch, ScoreBatch
from tasks.dcgan.features import FeatureNetwork, build_features
from tasks.dcgan.losses import discriminator_loss, generator_loss
from tasks.dcgan.networks import Discriminator, Generator
from tasks.dcgan.samples import CollapseWarning, SampleGrids
from tasks.dcgan.scores import FeatureTable, frechet_distance, kernel_distance
from trainer.config.schema import Config
from trainer.data.batch import StepBatch
from trainer.data.images.batches import ImageTransform
from trainer.errors import UserError
from trainer.module import StepSums, TrainingModule

SCORES_FILE = "scores.jsonl"


class DCGANModule(TrainingModule):
    """A generator and a discriminator; one step trains the discriminator, then the generator."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int], num_scored: int) -> None:
        super().__init__(config)
        assert isinstance(config.task, DCGANConfig) and isinstance(config.model, DCGANModel)
        self.task, self.model, self.image_shape = config.task, config.model, image_shape
        channels, size, _ = image_shape
        self.discriminator = Discriminator(config.model, channels, size)
        self.generator = Generator(config.model, channels, size)
        self.averaged = self._averaged_generator() if config.task.ema_decay is not None else None
        layout = config.performance.channels_last
        data: Any = config.data
        # Real images in the range of the generator's tanh.
        self.transform = ImageTransform([0.5] * channels, [0.5] * channels, data.crop_padding, data.flip, layout)
        self.features: FeatureNetwork = build_features(config.task.features, image_shape)
        self.table = FeatureTable(num_scored)

    def networks(self) -> Mapping[str, nn.Module]:
        """See TrainingModule; the generator ends the step."""
        return {"discriminator": self.discriminator, "generator": self.generator}

    def configure_callbacks(self) -> list[pl.Callback]:
        """Lightning's hook."""
        return [SampleGrids(self.task), CollapseWarning(self.task.sample_every_n_steps)]

    def describe(self) -> dict[str, object]:
        """Facts for the run's record: what scores are comparable with."""
        return {"scores": {**self.features.protocol(), "num_images": self.table.num_samples}}

    # ---- the step

    def training_step(self, batch: StepBatch[GanBatch], batch_idx: int) -> StepSums:
        """Train the discriminator, as often as configured, and then the generator against it."""
        sums: StepSums = {}
        kept: Tensor | None = None
        for number in range(self.task.discriminator_steps):
            # The generator's step goes on from the last discriminator step's images. With several micro-batches their
            # graphs would all have to be kept, so they are generated again, the same ones.
            keep = number == self.task.discriminator_steps - 1 and len(batch.micro_batches) == 1
            sums, kept = self._train_discriminator(batch, number, keep)
        return sums | self._train_generator(batch, kept)

    def _train_discriminator(
        self, batch: StepBatch[GanBatch], number: int, keep: bool
    ) -> tuple[StepSums, Tensor | None]:
        """One update. Returns: (sums, the last micro-batch's images with their graph where `keep`)."""
        sums: StepSums = {}
        fake: Tensor | None = None
        for micro in self.accumulate(batch, "discriminator"):
            rows = slice(micro.num_valid)
            real = self.transform(micro.images[number, rows], micro.draws[number, rows])
            fake = self._generate(micro.noise[number, rows], keep)
            on_real, on_fake = self.wrapped["discriminator"](real, fake.detach())
            loss = discriminator_loss(on_real, on_fake, self.task.loss, self.task.label_smoothing)
            self.manual_backward(self.global_mean(loss, batch))
            _add(sums, loss_d=loss, d_real=_probabilities(on_real), d_fake_before=_probabilities(on_fake))
        self.optimize("discriminator")
        return sums, fake if keep else None

    def _train_generator(self, batch: StepBatch[GanBatch], kept: Tensor | None) -> StepSums:
        """One update against the discriminator as it is now. Args: kept: images that are generated already."""
        sums: StepSums = {}
        with frozen(self.discriminator):
            for micro in self.accumulate(batch, "generator"):
                fake = self._generate(micro.noise[-1, : micro.num_valid], True) if kept is None else kept
                # Not through its replica: nothing of it is trained, so there is nothing to exchange.
                (on_fake,) = self.discriminator(fake)
                loss = generator_loss(on_fake, self.task.loss)
                self.manual_backward(self.global_mean(loss, batch))
                _add(sums, loss_g=loss, d_fake_after=_probabilities(on_fake))
        self.optimize("generator")
        self._move_average()
        return sums

    def _generate(self, noise: Tensor, with_graph: bool) -> Tensor:
        with torch.set_grad_enabled(with_graph):
            return self.wrapped["generator"](noise)

    # ---- the averaged generator

    def _averaged_generator(self) -> Generator:
        averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        layout = torch.channels_last if self.config.performance.channels_last else torch.contiguous_format
        return averaged.to(memory_format=layout)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def _move_average(self) -> None:
        """Weights of the average follow the generator's, at first faster than `ema_decay`.

        torch's AveragedModel reads its counter from the device in every step, and a GPU would wait for it.
        """
        if self.averaged is None or self.task.ema_decay is None:
            return
        step = self.trainer.global_step
        decay = min(self.task.ema_decay, (1 + step) / (10 + step))
        ours: list[Tensor] = list(self.averaged.parameters())
        theirs: list[Tensor] = list(self.generator.parameters())
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def average_buffers(self) -> None:
        """See TrainingModule; the averaged generator takes over the statistics."""
        super().average_buffers()
        if self.averaged is not None:
            for ours, theirs in zip(self.averaged.buffers(), self.generator.buffers(), strict=True):
                ours.copy_(theirs)

    @torch.no_grad()
    def sample(self, noise: Tensor) -> Tensor:
        """Images of the averaged generator, where there is one, with the statistics of training.

        `average_buffers` comes before it. Shapes: noise (B, L) -> (B, C, H, W) uint8.
        """
        generator = self.averaged if self.averaged is not None else self.generator
        training = generator.training
        generator.eval()
        with torch.autocast(noise.device.type, enabled=False):
            images = generator(noise.to(next(generator.parameters()).dtype)).float()
        generator.train(training)
        return images.add_(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)

    # ---- scores

    def evaluation_step(self, batch: ScoreBatch, metrics_prefix: str) -> None:
        """See TrainingModule."""
        fake = self.sample(batch.noise)
        rows = slice(batch.num_valid)
        self.table.add(batch.indices[rows], self.features(batch.images)[rows], self.features(fake)[rows])

    def evaluation_metrics(self, metrics_prefix: str) -> Mapping[str, float | Tensor]:
        """See TrainingModule."""
        real, fake = self.table.gather(self.features.num_features, self.device)
        scores = {
            "frechet_distance": frechet_distance(real, fake).item(),
            "kernel_distance": kernel_distance(real, fake).item(),
        }
        if self.trainer.is_global_zero:
            protocol = {**self.features.protocol(), "num_images": len(real)}
            line = {"step": self.trainer.global_step, **scores, **protocol}
            _append_score(Path(self.trainer.default_root_dir) / SCORES_FILE, line)
        return scores


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for a network's weights: a backward through it is a third cheaper."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def build_module(config: Config, data: DCGANData) -> DCGANModule:
    """See TaskSpec. Raises: UserError: the images' size has no network."""
    channels, height, width = data.image_shape
    if height != width or height not in IMAGE_SIZES:
        sizes = " or ".join(f"data.image_size={size}" for size in IMAGE_SIZES)
        raise UserError(f"the images are {width}x{height}; the networks need {sizes}")
    return DCGANModule(config, (channels, height, width), len(data.sets["val"]))


def _probabilities(logits: Tensor) -> Tensor:
    """Sum over samples of the probability that an image is real."""
    return logits.detach().float().sigmoid().sum()


def _add(sums: StepSums, **values: Tensor) -> None:
    for name, value in values.items():
        value = value.detach()
        sums[name] = sums[name] + value if name in sums else value


def _append_score(path: Path, line: Mapping[str, object]) -> None:
    """Add a score with its protocol; those of steps that a resumed run does again are replaced."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    earlier = [text for text in lines if json.loads(text)["step"] < line["step"]]  # pyright: ignore[reportOperatorIssue]
    path.write_text("\n".join([*earlier, json.dumps(line)]) + "\n", encoding="utf-8")

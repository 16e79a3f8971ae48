"""Training step, averaged generator and scores of the DCGAN."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn

from tasks.dcgan.config import IMAGE_SIZES, DCGANConfig, DCGANModel
from tasks.dcgan.data import DCGANData, GanBatch, ScoreBatch
from tasks.dcgan.features import FeatureNetwork, build_features
from tasks.dcgan.flops import count_step_flops
from tasks.dcgan.losses import discriminator_loss, generator_loss
from tasks.dcgan.networks import Discriminator, Generator, sample_images
from tasks.dcgan.noise import Stream
from tasks.dcgan.samples import CollapseWarning, SampleGrids
from tasks.dcgan.score_log import append_score
from tasks.dcgan.scores import FeatureTable, frechet_distance, kernel_distance
from trainer.config.schema import Config
from trainer.data.batch import StepBatch
from trainer.data.images.batches import ImageTransform
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.own_transform import OwnTransform
from trainer.data.normal import normal
from trainer.errors import UserError
from trainer.module import StepSums, TrainingModule

DCGANRunConfig = Config[DCGANConfig, DCGANModel, ImageDataConfig]


class DCGANModule(TrainingModule[DCGANRunConfig]):
    """A generator and a discriminator; one step trains the discriminator, then the generator."""

    def __init__(self, config: DCGANRunConfig, image_shape: tuple[int, int, int], num_scored: int) -> None:
        super().__init__(config)
        self.task, self.model, self.image_shape = config.task, config.model, image_shape
        channels, size, _ = image_shape
        self.discriminator = Discriminator(config.model, channels, size)
        self.generator = Generator(config.model, channels, size)
        self.averaged = self._averaged_generator() if config.task.ema_decay is not None else None
        layout = config.performance.channels_last
        # Real images in the range of the generator's tanh.
        half, data = [0.5] * channels, config.data
        self.transform = ImageTransform(half, half, data.crop_padding, data.flip, layout, OwnTransform.of(data))
        self.features: FeatureNetwork = build_features(config.task.features, image_shape)
        self.table = FeatureTable(num_scored)
        # Of a step and image, by whether the generator's update reuses the discriminator's images.
        counted = self.generator, self.discriminator, config.model.latent_size, image_shape
        steps = config.task.discriminator_steps
        self.flops = {reused: count_step_flops(*counted, steps, reused) for reused in (True, False)}

    def networks(self) -> Mapping[str, nn.Module]:
        """Both networks; the generator's optimizer ends the step."""
        return {"discriminator": self.discriminator, "generator": self.generator}

    def on_weights_loaded(self, sha256: str, new: Sequence[str]) -> None:
        """See TrainingModule: the average starts at the generator."""
        if self.averaged is not None:
            self.averaged.load_state_dict(self.generator.state_dict())

    def configure_callbacks(self) -> list[pl.Callback]:
        """Sample grids at a cadence, and a warning on collapse."""
        grids = SampleGrids(self.task, self.image_shape[1], self.fixed_samples)
        return [grids, CollapseWarning(self.task.sample_every_n_steps)]

    def describe(self) -> dict[str, object]:
        """Facts for the run's record: what scores are comparable with."""
        return {"scores": {**self.features.protocol(), "num_images": self.table.num_samples}}

    # ---- the step

    def training_step(self, batch: StepBatch[GanBatch], batch_idx: int) -> StepSums:
        """Train the discriminator `discriminator_steps` times, and then the generator against it."""
        sums: StepSums = {}
        kept: Tensor | None = None
        for number in range(self.task.discriminator_steps):
            # The generator's step reuses the images of the last discriminator step. With several micro-batches all
            # their graphs would have to be kept, so the same images are generated again.
            keep = number == self.task.discriminator_steps - 1 and len(batch.micro_batches) == 1
            sums, kept = self._train_discriminator(batch, number, keep)
        sums |= self._train_generator(batch, kept)
        num_images = sum(micro.num_valid for micro in batch.micro_batches)
        num_flops = float(num_images * self.flops[kept is not None])
        return sums | {"num_flops": torch.full_like(sums["loss_g"], num_flops, dtype=torch.float64)}

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
        """One update against the updated discriminator. Args: kept: images with their graph, None to generate them."""
        sums: StepSums = {}
        with frozen(self.discriminator):
            for micro in self.accumulate(batch, "generator"):
                fake = self._generate(micro.noise[-1, : micro.num_valid], True) if kept is None else kept
                # Not through its replica: it is frozen, so there are no gradients to exchange.
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
        """Move the averaged weights towards the generator's, at first faster than `ema_decay`.

        torch's AveragedModel reads its counter from the device in every step, which would synchronise a GPU.
        """
        if self.averaged is None or self.task.ema_decay is None:
            return
        step = self.trainer.global_step
        decay = min(self.task.ema_decay, (1 + step) / (10 + step))
        ours: list[Tensor] = list(self.averaged.parameters())
        theirs: list[Tensor] = list(self.generator.parameters())
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def average_buffers(self) -> None:
        """Average over ranks, see TrainingModule, and copy the statistics to the averaged generator."""
        super().average_buffers()
        if self.averaged is not None:
            for ours, theirs in zip(self.averaged.buffers(), self.generator.buffers(), strict=True):
                ours.copy_(theirs)

    def sample(self, noise: Tensor) -> Tensor:
        """Images of the averaged generator, or of the generator where none is averaged, in evaluation mode.

        `average_buffers` must have been called. Shapes: noise (B, L) -> (B, C, H, W) uint8.
        """
        generator = self.averaged if self.averaged is not None else self.generator
        training = generator.training
        generator.eval()
        images = sample_images(generator, noise)
        generator.train(training)
        return images

    def fixed_samples(self) -> Tensor:
        """The images of a grid, from the same noise throughout a run. Collective: called on all ranks.

        Returns: (N, C, H, W) uint8 on the CPU.
        """
        self.average_buffers()
        numbers = np.arange(self.task.num_samples)
        noise = normal(self.config.seed, 0, numbers, self.model.latent_size, Stream.GRID)
        return self.sample(torch.from_numpy(noise).to(self.device)).cpu()

    # ---- scores

    def evaluation_step(self, batch: ScoreBatch, metrics_prefix: str) -> None:
        """Add the features of the valid rows, real and generated."""
        fake = self.sample(batch.noise)
        rows = slice(batch.num_valid)
        self.table.add(batch.indices[rows], self.features(batch.images)[rows], self.features(fake)[rows])

    def evaluation_metrics(self, metrics_prefix: str) -> Mapping[str, float | Tensor]:
        """Distances over all ranks; those of an evaluation during training are added to scores.jsonl."""
        real, fake = self.table.gather(self.features.num_features, self.device)
        scores = {
            "frechet_distance": frechet_distance(real, fake).item(),
            "kernel_distance": kernel_distance(real, fake).item(),
        }
        training = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if training and self.trainer.is_global_zero:
            protocol = {**self.features.protocol(), "num_images": len(real)}
            line = {"step": self.trainer.global_step, **scores, **protocol}
            append_score(Path(self.trainer.default_root_dir), line)
        return scores


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Compute no gradients for a network's weights; a backward pass through it is a third cheaper."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def build_module(config: DCGANRunConfig, data: DCGANData) -> DCGANModule:
    """The DCGAN task's module. Raises: UserError: there is no network for the images' size."""
    channels, height, width = data.spec.form.shape
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

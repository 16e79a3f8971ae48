"""The step against a plain alternating loop, for every split into micro-batches and every precision."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.dcgan.data import DCGANData
from tasks.dcgan.module import DCGANModule, frozen
from trainer.config.schema import Config
from trainer.data.samplers import Share, ShuffledSampler, split_step
from trainer.engine.build import build_data_and_module, build_trainer
from trainer.verbs.prepare import Options, prepare

NUM_STEPS = 5
WORDS = [
    "task=dcgan",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "model.width=8",
    "model.latent_size=16",
    "trainer.enable_progress_bar=false",
    "batch.global_size=24",
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.limit_val_batches=0",
    "task.sample_every_n_steps=1000",
]
SGD = [
    "optimizer=sgd",
    # GAN training is chaotic: with larger steps rounding errors exceed any tolerance within a few steps.
    "optimizer.lr=0.003",
    "optimizer.momentum=0.0",
    "optimizer.nesterov=false",
]


def built(*words: str) -> tuple[Config, DCGANData, DCGANModule, Any]:
    plan = prepare([*WORDS, *words], Options())
    data, module = build_data_and_module(plan.config, plan.task, plan.world)
    assert isinstance(data, DCGANData)
    assert isinstance(module, DCGANModule)
    return plan.config, data, module, plan.world


def train(
    folder: Path,
    config: Config,
    data: DCGANData,
    module: DCGANModule,
    world: Any,
    callbacks: Sequence[pl.Callback] = (),
) -> None:
    trainer = build_trainer(config, world, folder, list(callbacks), [])
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == NUM_STEPS


class CountedSteps(pl.Callback):
    """The operations that torch counts in each step, and those that the step reports."""

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)
        self.pairs: list[tuple[float, int]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.counter.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.counter.__exit__(None, None, None)
        self.pairs.append((float(outputs["num_flops"]), self.counter.get_total_flops()))


@pytest.mark.parametrize(
    "words", [[], ["task.discriminator_steps=2"], ["batch.micro_size=8"], ["model.spectral_norm=true"]]
)
def test_flops_are_those_that_torch_counts(words: list[str], tmp_path: Path) -> None:
    config, data, module, world = built(*words, "trainer.max_steps=2")
    counted = CountedSteps()
    build_trainer(config, world, tmp_path, [counted], []).fit(module, datamodule=data)
    assert len(counted.pairs) == 2
    for reported, expected in counted.pairs:
        assert reported == pytest.approx(expected, rel=0.01)


def ordinary_loop(
    config: Config, data: DCGANData, discriminator: nn.Module, generator: nn.Module, steps: Iterable[Any]
) -> list[float]:
    """Trains both networks in place. Args: steps: indices of each. Returns: the discriminator's loss at each step."""
    task: Any = config.task
    loss_of = nn.BCEWithLogitsLoss(reduction="sum")
    optimizers = [ordinary_optimizer(config, network) for network in (discriminator, generator)]
    bf16 = config.trainer.precision == "bf16-mixed"

    def precision() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()

    def logits(*batches: Tensor) -> list[Tensor]:
        with precision():
            return [judged.float() for judged in discriminator(*batches)]

    def generate(noise: Tensor) -> Tensor:
        with precision():
            return generator(noise)

    def step(optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        if config.trainer.gradient_clip_val is not None:
            nn.utils.clip_grad_norm_(network.parameters(), config.trainer.gradient_clip_val)
        optimizer.step()
        for other in optimizers:
            other.zero_grad()

    losses = []
    for indices in steps:
        micro_size = config.batch.micro_size or len(indices)
        micros = [m.indices for m in split_step(indices, Share(0, 1), micro_size)]
        batches = [data.sets["train"].gather(part, len(part), 0) for part in micros]
        for number in range(task.discriminator_steps):
            losses.append(0.0)
            for batch in batches:
                real, noise = batch.images[number] / 127.5 - 1, batch.noise[number]
                fake = generate(noise).detach()
                # A sum of two gradients in bf16 is rounded otherwise than the gradient of a sum.
                on_real, on_fake = logits(real, fake) if bf16 else (*logits(real), *logits(fake))
                loss = loss_of(on_real, torch.ones(len(real))) + loss_of(on_fake, torch.zeros(len(real)))
                (loss / len(indices)).backward()
                losses[-1] += loss.item() / len(indices)
            step(optimizers[0], discriminator)
        for batch in batches:
            (on_fake,) = logits(generate(batch.noise[-1]))
            (loss_of(on_fake, torch.ones(len(on_fake))) / len(indices)).backward()
        step(optimizers[1], generator)
    return losses


def ordinary_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    options: Any = config.optimizer
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in network.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, options.lr, momentum=options.momentum, nesterov=options.nesterov)


def first_steps(config: Config, data: DCGANData) -> Sequence[Any]:
    sampler = ShuffledSampler(len(data.sets["train"]), config.batch.global_size, config.seed)
    return sampler.epoch_batches(0)[:NUM_STEPS]


class RepeatedSteps(pl.Callback):
    """Repeats each step by the ordinary loop, from the weights before it, and compares.

    Rounding errors of earlier steps do not add up: one that turns the sign of an activation would be larger than any
    fault within a few steps.
    """

    def __init__(self, config: Config, data: DCGANData, tolerance: float) -> None:
        self.config, self.data, self.tolerance = config, data, tolerance
        self.steps = first_steps(config, data)
        self.before: list[nn.Module] = []
        self.num_compared = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before = [copy.deepcopy(pl_module.discriminator), copy.deepcopy(pl_module.generator)]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        discriminator, generator = self.before
        ordinary_loop(self.config, self.data, discriminator, generator, [self.steps[batch_idx]])
        assert_same_weights(pl_module.discriminator, discriminator, self.tolerance)
        assert_same_weights(pl_module.generator, generator, self.tolerance)
        self.num_compared += 1


def assert_same_weights(ours: nn.Module, ordinary: nn.Module, tolerance: float) -> None:
    for (name, one), other in zip(ours.named_parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["performance.channels_last=false", "trainer.gradient_clip_val=0.5"],
        ["batch.micro_size=8"],
        ["task.discriminator_steps=3"],
        ["task.discriminator_steps=2", "batch.micro_size=12", "trainer.gradient_clip_val=0.5"],
    ],
    ids=str,
)
def test_the_step_is_that_of_an_ordinary_loop(words: list[str], tmp_path: Path) -> None:
    config, data, module, world = built(*SGD, *words)
    repeated = RepeatedSteps(config, data, 1e-6)
    train(tmp_path, config, data, module, world, [repeated])
    assert repeated.num_compared == NUM_STEPS


@pytest.mark.parametrize("words", [[], ["task.discriminator_steps=2", "batch.micro_size=12"]], ids=str)
def test_bf16_computes_with_the_updated_weights(words: list[str], tmp_path: Path) -> None:
    """A step is one autocast region, whose cache must not keep casts of the weights from before an update."""
    words = [*words, "trainer.precision=bf16-mixed", "performance.channels_last=false"]
    config, data, module, world = built(*SGD, *words)
    discriminator, generator = copy.deepcopy(module.discriminator), copy.deepcopy(module.generator)
    ordinary_loop(config, data, discriminator, generator, first_steps(config, data))
    train(tmp_path, config, data, module, world)
    assert_same_weights(module.discriminator, discriminator, 1e-5)
    assert_same_weights(module.generator, generator, 1e-5)


def test_one_step_is_one_pair(tmp_path: Path) -> None:
    config, data, module, world = built("task.discriminator_steps=3", "optimizer=adam_gan", "scheduler=linear")
    train(tmp_path, config, data, module, world)
    optimizers: Any = module.optimizers()
    counts = [int(next(iter(optimizer.state.values()))["step"]) for optimizer in optimizers]
    assert counts == [3 * NUM_STEPS, NUM_STEPS]


def test_the_average_follows_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data, module, world = built(*SGD, "task.ema_decay=0.3")
    expected = [parameter.detach().double().clone() for parameter in module.generator.parameters()]
    original = DCGANModule._move_average

    def watched(self: DCGANModule) -> None:
        decay = min(0.3, (1 + self.trainer.global_step) / (10 + self.trainer.global_step))
        for mean, parameter in zip(expected, self.generator.parameters(), strict=True):
            mean.mul_(decay).add_(parameter.detach(), alpha=1 - decay)
        original(self)

    monkeypatch.setattr(DCGANModule, "_move_average", watched)
    train(tmp_path, config, data, module, world)
    assert module.averaged is not None
    for mean, parameter in zip(expected, module.averaged.parameters(), strict=True):
        torch.testing.assert_close(parameter.double(), mean, rtol=0, atol=1e-6)


def test_frozen_weights_get_no_gradients_and_are_trained_again_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    with frozen(layer):
        assert not any(parameter.requires_grad for parameter in layer.parameters())
    with pytest.raises(RuntimeError), frozen(layer):
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("words", [["task.loss=hinge"], ["task.loss=saturating", "model.spectral_norm=true"]], ids=str)
def test_other_losses_and_norms_train_both_networks(words: list[str], tmp_path: Path) -> None:
    config, data, module, world = built(*words, "optimizer=adam_gan", "data.image_size=64")
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    train(tmp_path, config, data, module, world)
    for name, parameter in module.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert not torch.equal(parameter, before[name]), name

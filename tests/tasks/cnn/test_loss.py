"""The loss of one micro-batch against its formula: smoothing, mixup, filler rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tasks.cnn.data import CNNData, MixupBatch, MixupSet
from tasks.cnn.module import CNNModule
from trainer.config.compose import compose_mapping, typed
from trainer.data.batch import MicroBatch
from trainer.data.images.batches import ImageBatch, ImageSet
from trainer.data.samplers import Share, split_step
from trainer.errors import ConfigError

EXPERIMENTS = Path(__file__).resolve().parents[3] / "conf" / "experiment"


def built(*words: str) -> tuple[CNNModule, CNNData]:
    config, task = typed(compose_mapping(["task=cnn", "logger=none", "run.report=false", *words]))
    data = task.build_data(config)
    assert isinstance(data, CNNData)
    data.load(torch.device("cpu"))
    torch.manual_seed(0)
    module = task.build_module(config, data)
    assert isinstance(module, CNNModule)
    return module, data


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Per sample: -sum of target times log-probability, the target being smoothed (Szegedy et al. 2016, section 7)."""
    targets = torch.nn.functional.one_hot(labels, logits.shape[1]) * (1 - smoothing) + smoothing / logits.shape[1]
    return -(targets * (logits - logits.logsumexp(1, keepdim=True))).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_sum_over_valid_rows(smoothing: float) -> None:
    module, data = built(f"task.label_smoothing={smoothing}")
    batch = data.sets["train"].gather(np.arange(20), 13, epoch=0)
    assert isinstance(batch, ImageBatch)
    loss, sums = module.loss(module.model, batch)
    images = (batch.images / 255 - data.spec.mean[0]) / data.spec.std[0]
    logits = module.model(images)[:13]
    torch.testing.assert_close(loss, cross_entropy(logits, batch.labels[:13], smoothing).sum())
    assert sums["accuracy"] == (logits.argmax(1) == batch.labels[:13]).sum()
    assert sums["num_flops"] == 13 * module.training_flops


@pytest.mark.parametrize("model", ["lenet5", "reference_cnn", "resnet18", "resnet50"])
def test_flops_are_those_that_torch_counts(model: str) -> None:
    module, data = built(f"model={model}")
    batch = data.sets["train"].gather(np.arange(3), 3, epoch=0)
    assert isinstance(batch, ImageBatch)
    with FlopCounterMode(display=False) as counter:
        loss, sums = module.loss(module.model, batch)
        loss.backward()
    assert float(sums["num_flops"]) == pytest.approx(counter.get_total_flops(), rel=0.01)
    # Three times the forward pass would count a gradient of the images, a tenth of LeNet-5's operations.
    assert module.training_flops < 3 * module.flops


def gradients(module: CNNModule, batch: MicroBatch) -> list[Tensor]:
    """Of every parameter; there must be one for each, also from a batch of filler rows."""
    assert isinstance(batch, ImageBatch)
    module.zero_grad()
    loss, _ = module.loss(module.model, batch)
    loss.backward()
    found = [parameter.grad for parameter in module.model.parameters()]
    assert all(gradient is not None for gradient in found)
    return [gradient.clone() for gradient in found if gradient is not None]


def test_filler_rows_give_no_gradient() -> None:
    module, data = built()
    train = data.sets["train"]
    only_filler = train.gather(np.arange(1), 0, epoch=0)
    assert isinstance(only_filler, ImageBatch)
    loss, sums = module.loss(module.model, only_filler)
    assert loss == 0
    assert sums["accuracy"] == 0
    assert not any(gradient.any() for gradient in gradients(module, only_filler))
    with_filler, without = (gradients(module, train.gather(np.arange(n), 3, epoch=0)) for n in (4, 3))
    assert all(gradient.any() for gradient in without)
    for one, other in zip(with_filler, without, strict=True):
        torch.testing.assert_close(one, other)


def test_mixup_blends_images_and_losses() -> None:
    module, data = built("task.mixup_alpha=0.4", "task.label_smoothing=0.1")
    batch = data.sets["train"].gather(np.arange(20), 20, epoch=0)
    assert isinstance(batch, MixupBatch)
    loss, _ = module.loss(module.model, batch)
    share = batch.share[:, None, None, None]
    mixed = batch.images / 255 * share + batch.partner_images / 255 * (1 - share)
    logits = module.model((mixed - data.spec.mean[0]) / data.spec.std[0])
    own = cross_entropy(logits, batch.labels, 0.1)
    partner = cross_entropy(logits, batch.partner_labels, 0.1)
    torch.testing.assert_close(loss, (batch.share * own + (1 - batch.share) * partner).sum(), rtol=1e-5, atol=0)


def numbered(count: int) -> ImageSet:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return ImageSet(images.contiguous(), np.arange(count), np.arange(count), seed=0)


def test_mixup_is_the_same_on_any_rank() -> None:
    mixup, order = MixupSet(numbered(200), 0.4), np.random.default_rng(0).permutation(200)[:50]
    whole = mixup.gather(order, 50, epoch=1)
    parts = [
        mixup.gather(micro.indices, micro.num_valid, epoch=1)
        for rank in range(3)
        for micro in split_step(order, Share(rank, 3), micro_size=7)
    ]
    for name in ("share", "partner_labels", "partner_images", "partner_draws"):
        joined = torch.cat([getattr(part, name)[: part.num_valid] for part in parts])
        torch.testing.assert_close(joined, getattr(whole, name), atol=0, rtol=0)
    assert torch.equal(whole.partner_images[:, 0, 0, 0].long(), whole.partner_labels)


def test_mixup_draws_from_beta() -> None:
    alpha, count = 0.4, 200
    mixup = MixupSet(numbered(count), alpha)
    batches = [mixup.gather(np.arange(count), count, epoch) for epoch in range(50)]
    shares = torch.cat([batch.share for batch in batches])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); 10,000 draws.
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    counts = torch.cat([batch.partner_labels for batch in batches]).bincount(minlength=count)
    assert counts.min() >= 20  # binomial with mean 50 and standard deviation 7
    assert counts.max() <= 85
    first, own = batches[0], mixup.images.gather(np.arange(count), count, 0)
    assert np.corrcoef(first.share.numpy(), own.draws[:, 0].numpy())[0, 1] < 0.25


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["data.image_size=8"], "data.image_size"),
        (["model=resnet50", "model.stem=imagenet", "data.image_size=16"], "data.image_size"),
        (["task.label_smoothing=1.0"], "task.label_smoothing"),
        (["task.mixup_alpha=-1"], "task.mixup_alpha"),
        (["data=image_folder"], "data.path"),
        (["data=cifar10", "data.path=/no/such/place"], "data.path"),
        (["data.channels=4"], "data.channels"),
        (["data.crop_padding=-1"], "data.crop_padding"),
        (["data.eval_fraction=1.0"], "data.eval_fraction"),
        (["data.resize=squash"], "data.resize"),
    ],
)
def test_user_errors_name_their_key(words: list[str], key: str) -> None:
    try:
        config, task = typed(compose_mapping(["task=cnn", "logger=none", "run.report=false", *words]))
        problems = task.validate(config)
    except ConfigError as error:
        problems = error.problems
    assert [problem.key for problem in problems] == [key]


def test_images_too_small_for_the_network_are_refused_when_loaded() -> None:
    with pytest.raises(ConfigError, match=r"data.image_size=8: model=lenet5 needs images of at least 16 pixels"):
        built("data.image_size=null")


def test_a_set_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from trainer.errors import UserError

    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "faces").mkdir()
    for number in range(4):
        Image.new("RGB", (70, 70), (number, 0, 0)).save(tmp_path / "faces" / f"{number}.png")
    with pytest.raises(UserError, match="have no labels"):
        built("data=image_folder", f"data.path={tmp_path / 'faces'}")


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("cnn_*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_its_schema(path: Path) -> None:
    config, task = typed(compose_mapping([f"experiment={path.stem}", "logger=none", "run.report=false"]))
    assert task.name == "cnn"
    assert not task.validate(config)
    assert "python -m trainer experiment=" + path.stem in path.read_text()

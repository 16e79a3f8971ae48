"""Networks: parameter counts by hand, outputs recomputed without modules, stems, floating-point operations."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.cnn.config import PlainConfig, ResNetConfig, smallest_image
from tasks.cnn.models import build_model, count_flops
from trainer.config.schema import ModelConfig


def model_config(name: str, stem: str = "auto") -> ModelConfig:
    return ResNetConfig(name=name, stem=stem) if name.startswith("resnet") else PlainConfig(name=name)


def resnet18_parameters(stem: int, num_classes: int) -> int:
    total = stem + 2 * 64
    inner = 64
    for width in (64, 128, 256, 512):
        first = 9 * inner * width + 9 * width * width + 4 * width
        projection = inner * width + 2 * width if inner != width else 0
        second = 2 * 9 * width * width + 4 * width
        total, inner = total + first + projection + second, width
    return total + 512 * num_classes + num_classes


def resnet50_parameters(stem: int, num_classes: int) -> int:
    total = stem + 2 * 64
    inner = 64
    for width, depth in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(depth):
            outer = 4 * width
            total += inner * width + 9 * width * width + width * outer + 4 * width + 2 * outer
            total += inner * outer + 2 * outer if block == 0 else 0
            inner = outer
    return total + 2048 * num_classes + num_classes


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "expected"),
    [
        ("lenet5", (1, 32, 32), 10, (25 + 1) * 6 + (6 * 25 + 1) * 16 + (400 + 1) * 120 + 121 * 84 + 85 * 10),
        ("lenet5", (1, 28, 28), 10, (25 + 1) * 6 + (6 * 25 + 1) * 16 + (256 + 1) * 120 + 121 * 84 + 85 * 10),
        ("reference_cnn", (3, 32, 32), 10, (27 + 1) * 32 + (15 * 15 * 32 + 1) * 10),
        ("resnet18", (3, 32, 32), 10, resnet18_parameters(27 * 64, 10)),
        ("resnet18", (1, 64, 64), 7, resnet18_parameters(9 * 64, 7)),
        ("resnet18", (3, 224, 224), 1000, resnet18_parameters(147 * 64, 1000)),
        ("resnet50", (3, 64, 64), 200, resnet50_parameters(27 * 64, 200)),
        ("resnet50", (3, 224, 224), 1000, resnet50_parameters(147 * 64, 1000)),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, int, int], num_classes: int, expected: int) -> None:
    model = build_model(model_config(name), shape, num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_counts_by_hand_are_the_published_ones() -> None:
    assert resnet18_parameters(147 * 64, 1000) == 11_689_512
    assert resnet50_parameters(147 * 64, 1000) == 25_557_032


def unfolded_conv(
    maps: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """A convolution as a matrix product over patches."""
    size = weight.shape[-1]
    side = (maps.shape[-1] + 2 * padding - size) // stride + 1
    patches = F.unfold(maps, size, padding=padding, stride=stride)
    result = weight.flatten(1) @ patches
    if bias is not None:
        result = result + bias[:, None]
    return result.view(len(maps), len(weight), side, side)


def halved(maps: Tensor) -> Tensor:
    """2x2 max-pooling as a maximum of four slices; an odd last row or column is left out."""
    side = maps.shape[-1] // 2 * 2
    corners = [maps[..., row:side:2, column:side:2] for row in (0, 1) for column in (0, 1)]
    return torch.stack(corners).amax(0)


def test_lenet5_recomputed() -> None:
    torch.manual_seed(0)
    model = build_model(model_config("lenet5"), (1, 28, 28), 10).double()
    w = model.state_dict()
    images = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    maps = halved(unfolded_conv(images, w["conv1.weight"], w["conv1.bias"]).clamp(min=0))
    maps = halved(unfolded_conv(maps, w["conv2.weight"], w["conv2.bias"]).clamp(min=0))
    hidden = (maps.reshape(4, -1) @ w["hidden1.weight"].T + w["hidden1.bias"]).clamp(min=0)
    hidden = (hidden @ w["hidden2.weight"].T + w["hidden2.bias"]).clamp(min=0)
    torch.testing.assert_close(model(images), hidden @ w["head.weight"].T + w["head.bias"])


def test_reference_cnn_recomputed() -> None:
    torch.manual_seed(0)
    model = build_model(model_config("reference_cnn"), (3, 32, 32), 10).double()
    w = model.state_dict()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    maps = halved(unfolded_conv(images, w["conv.weight"], w["conv.bias"]).clamp(min=0))
    torch.testing.assert_close(model(images), maps.reshape(4, -1) @ w["head.weight"].T + w["head.bias"])


def norm(maps: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    """BatchNorm over the batch, as in training."""
    mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), correction=0, keepdim=True)
    scale, shift = (w[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
    return (maps - mean) / (variance + 1e-5).sqrt() * scale + shift


def residual(maps: Tensor, w: Mapping[str, Tensor], name: str, stride: int, sizes: tuple[int, ...]) -> Tensor:
    """One block of convolutions of the given sizes, the stride in the first of size 3."""
    inner, strided = maps, False
    for number, size in enumerate(sizes, 1):
        step = stride if size == 3 and not strided else 1
        strided = strided or size == 3
        inner = unfolded_conv(inner, w[f"{name}.conv{number}.weight"], None, step, size // 2)
        inner = norm(inner, w, f"{name}.norm{number}")
        inner = inner.clamp(min=0) if number < len(sizes) else inner
    if f"{name}.shortcut.0.weight" in w:
        maps = norm(unfolded_conv(maps, w[f"{name}.shortcut.0.weight"], None, stride), w, f"{name}.shortcut.1")
    return (inner + maps).clamp(min=0)


@pytest.mark.parametrize(
    ("name", "sizes", "depths"), [("resnet18", (3, 3), (2, 2, 2, 2)), ("resnet50", (1, 3, 1), (3, 4, 6, 3))]
)
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_resnets_recomputed(name: str, sizes: tuple[int, ...], depths: tuple[int, ...], stem: str) -> None:
    torch.manual_seed(0)
    side = 16 if stem == "small" else 64
    model = build_model(model_config(name, stem), (3, side, side), 5).double()
    for module in model.modules():  # so that no branch is multiplied by the zero it starts with
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    w = model.state_dict()
    if stem == "small":
        maps = norm(unfolded_conv(images, w["stem.0.weight"], None, 1, 1), w, "stem.1").clamp(min=0)
    else:
        maps = norm(unfolded_conv(images, w["stem.0.weight"], None, 2, 3), w, "stem.1").clamp(min=0)
        windows = F.unfold(maps, 3, padding=1, stride=2).view(2, 64, 9, -1)  # ReLU's zeros make the border harmless
        maps = windows.amax(2).view(2, 64, 16, 16)
    for block in range(sum(depths)):
        first_of_stage = block in {sum(depths[:stage]) for stage in (1, 2, 3)}
        maps = residual(maps, w, f"blocks.{block}", 2 if first_of_stage else 1, sizes)
    expected = maps.mean((2, 3)) @ w["head.weight"].T + w["head.bias"]
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("side", "first"), [(32, 3), (64, 3), (65, 7), (224, 7)])
def test_stem_follows_the_image_size(side: int, first: int) -> None:
    stem = build_model(model_config("resnet50"), (3, side, side), 10).get_submodule("stem.0")
    assert isinstance(stem, nn.Conv2d)
    assert stem.kernel_size == (first, first)
    assert stem.stride == ((1, 1) if first == 3 else (2, 2))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_blocks_start_as_their_shortcuts(name: str) -> None:
    blocks = build_model(model_config(name), (3, 32, 32), 10).get_submodule("blocks")
    maps = torch.rand(2, 64, 8, 8)
    second = list(blocks.children())[1]
    entry = maps if name == "resnet18" else torch.rand(2, 256, 8, 8)
    torch.testing.assert_close(second(entry), entry)


@pytest.mark.parametrize("name", ["lenet5", "reference_cnn", "resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_smallest_image_is_enough(name: str, stem: str) -> None:
    side = smallest_image(model_config(name, stem))
    model = build_model(model_config(name, stem), (1, side, side), 3).eval()
    assert model(torch.zeros(1, 1, side, side)).shape == (1, 3)
    assert all(parameter.numel() > 0 for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_smaller_than_smallest_has_no_weights_left() -> None:
    for name in ("lenet5", "reference_cnn"):
        side = smallest_image(model_config(name)) - 1
        model = build_model(model_config(name), (1, side, side), 3)
        assert any(parameter.numel() == 0 for parameter in model.parameters())


def test_flops_by_hand() -> None:
    model = build_model(model_config("reference_cnn"), (3, 32, 32), 10)
    assert count_flops(model, (3, 32, 32)) == 2 * 30 * 30 * 32 * 27 + 2 * 7200 * 10
    assert next(model.parameters()).device.type == "cpu"

"""torchvision's published ResNets, laid out from their architecture: every name and shape, and the same logits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.cnn.module import CNNModule
from trainer.checkpoint.initial import describe_weights, start_from_weights
from trainer.errors import UserError
from trainer.verbs.prepare import Options, prepare

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
# As torchvision documents them: parameters with 1,000 classes, and tensors in the file.
PUBLISHED = {"resnet18": (11_689_512, 122), "resnet50": (25_557_032, 320)}


def published_shapes(name: str, num_classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """Shapes of a published file by name, in its order."""
    expansion = 1 if name == "resnet18" else 4
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(key: str, inner: int, outer: int, size: int, norm: str) -> None:
        shapes[f"{key}.weight"] = (outer, inner, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (outer,)
        shapes[f"{norm}.num_batches_tracked"] = ()

    conv("conv1", 3, 64, 7, "bn1")
    inner = 64
    for stage, depth in enumerate(DEPTHS[name]):
        width = 64 * 2**stage
        for number in range(depth):
            block = f"layer{stage + 1}.{number}"
            widths = [(inner, width, 3), (width, width, 3)]
            if expansion == 4:
                widths = [(inner, width, 1), (width, width, 3), (width, 4 * width, 1)]
            for layer, (before, after, size) in enumerate(widths, 1):
                conv(f"{block}.conv{layer}", before, after, size, f"{block}.bn{layer}")
            if number == 0 and inner != width * expansion:
                conv(f"{block}.downsample.0", inner, width * expansion, 1, f"{block}.downsample.1")
            inner = width * expansion
    return {**shapes, "fc.weight": (num_classes, inner), "fc.bias": (num_classes,)}


def random_weights(name: str, num_classes: int = 1000) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    weights: dict[str, Tensor] = {}
    for key, shape in published_shapes(name, num_classes).items():
        values = torch.randn(shape, generator=draw)
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(7)
        elif values.ndim > 1:
            weights[key] = values * (2 / values[0].numel()) ** 0.5
        else:
            weights[key] = 1 + 0.1 * values.abs() if key.endswith(("weight", "var")) else 0.1 * values
    return weights


def torchvision_logits(weights: dict[str, Tensor], images: Tensor, name: str) -> Tensor:
    """The architecture as torchvision computes it, from a file's own names."""

    def norm(key: str, x: Tensor) -> Tensor:
        mean, var = weights[f"{key}.running_mean"], weights[f"{key}.running_var"]
        return F.batch_norm(x, mean, var, weights[f"{key}.weight"], weights[f"{key}.bias"])

    x = F.relu(norm("bn1", F.conv2d(images, weights["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(DEPTHS[name], 1):
        for number in range(depth):
            block, stride = f"layer{stage}.{number}", 2 if stage > 1 and number == 0 else 1
            layers = 2 if name == "resnet18" else 3
            strided = 1 if name == "resnet18" else 2
            y = x
            for layer in range(1, layers + 1):
                kernel = weights[f"{block}.conv{layer}.weight"]
                step = stride if layer == strided else 1
                y = norm(f"{block}.bn{layer}", F.conv2d(y, kernel, stride=step, padding=kernel.shape[-1] // 2))
                y = F.relu(y) if layer < layers else y
            if f"{block}.downsample.0.weight" in weights:
                x = norm(f"{block}.downsample.1", F.conv2d(x, weights[f"{block}.downsample.0.weight"], stride=stride))
            x = F.relu(y + x)
    return F.linear(x.mean(dim=(2, 3)), weights["fc.weight"], weights["fc.bias"])


def started(
    name: str, file: Path, *words: str, num_classes: int = 1000, channels: int = 3
) -> tuple[CNNModule, dict[str, Any]]:
    plan = prepare(["task=cnn", f"model={name}", "trainer.accelerator=cpu", f"init.from={file}", *words], Options())
    form = SimpleNamespace(shape=(channels, 64, 64))
    spec = SimpleNamespace(class_names=[str(number) for number in range(num_classes)], form=form)
    data: Any = SimpleNamespace(spec=spec, transform=nn.Identity)
    module = CNNModule(plan.config, data)  # pyright: ignore[reportArgumentType]
    return module, start_from_weights(plan.config, module, torch.device("cpu"))


@pytest.mark.parametrize("name", DEPTHS)
def test_names_and_shapes_are_those_that_are_published(name: str) -> None:
    shapes = published_shapes(name)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith(buffers))
    assert (count, len(shapes)) == PUBLISHED[name]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "resnet18.pth"
    torch.save(random_weights("resnet18"), path)
    return path


@pytest.mark.parametrize("name", DEPTHS)
def test_every_tensor_finds_its_place_and_logits_are_equal(name: str, tmp_path: Path) -> None:
    weights = random_weights(name)
    save_file(weights, tmp_path / "published.safetensors")
    module, facts = started(name, tmp_path / "published.safetensors", "model.stem=imagenet", "init.strict=true")
    assert facts["num_loaded"] == len(weights) and facts["new"] == []
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = module.model.eval()(images)
    torch.testing.assert_close(logits, torchvision_logits(weights, images, name), rtol=1e-4, atol=1e-4)


def test_other_classes_start_a_new_head(file: Path) -> None:
    module, facts = started("resnet18", file, "model.stem=imagenet", num_classes=7)
    assert facts["new"] == ["model.head.weight", "model.head.bias"]
    assert facts["num_loaded"] == 120 and facts["unused"] == []
    assert torch.equal(
        module.state_dict()["model.blocks.7.conv2.weight"], random_weights("resnet18")["layer4.1.conv2.weight"]
    )
    assert module.state_dict()["model.head.weight"].abs().max() <= 512**-0.5
    with pytest.raises(
        UserError, match=r"init.strict=true(.|\n)*model.head.weight is \(7, 512\) in the model and \(1000"
    ):
        started("resnet18", file, "model.stem=imagenet", "init.strict=true", num_classes=7)


@pytest.mark.parametrize(("words", "channels"), [(["model.stem=small"], 3), (["model.stem=imagenet"], 1)])
def test_another_stem_or_number_of_channels_starts_a_new_first_layer(
    words: list[str], channels: int, file: Path
) -> None:
    _, facts = started("resnet18", file, *words, channels=channels)
    assert facts["new"] == ["model.stem.0.weight"] and facts["num_loaded"] == 121
    assert "model.stem.0.weight" in describe_weights(facts)[1]


def test_a_file_of_before_batches_were_counted_is_taken(tmp_path: Path) -> None:
    weights = {key: value for key, value in random_weights("resnet18").items() if "num_batches" not in key}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    _, facts = started("resnet18", tmp_path / "old.pth", "model.stem=imagenet", "init.strict=true")
    assert facts["new"] == []


@pytest.mark.parametrize("name", ["resnet50", "lenet5", "reference_cnn"])
def test_another_depth_or_network_is_refused_with_its_first_mismatches(name: str, file: Path) -> None:
    with pytest.raises(UserError, match="another architecture") as caught:
        started(name, file)
    assert len(caught.value.lines) <= 3 and "model." in caught.value.lines[1]

"""The networks. Shapes: B batch, C channels, H and W height and width, K classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from tasks.cnn.config import LARGEST_SMALL_IMAGE, ResNetConfig
from trainer.config.own_parts import OwnModelConfig
from trainer.config.schema import ModelConfig
from trainer.parts import build_part

STAGE_WIDTHS = (64, 128, 256, 512)
# Blocks of each stage.
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}


def build_model(model: ModelConfig, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Build the configured network: images (B, C, H, W) float -> logits (B, K).

    Args: shape: (C, H, W) of the images. num_classes: K.
    Raises: UserError: a network of the user's own cannot be built.
    """
    if isinstance(model, OwnModelConfig):
        facts = {"num_classes": num_classes, "in_channels": shape[0], "image_shape": shape}
        return build_part("model", model, nn.Module, facts)
    if isinstance(model, ResNetConfig):
        large = model.stem == "imagenet" or (model.stem == "auto" and max(shape[1:]) > LARGEST_SMALL_IMAGE)
        block = {"resnet18": BasicBlock, "resnet50": Bottleneck}[model.name]
        return ResNet(block, DEPTHS[model.name], shape[0], num_classes, large)
    return {"lenet5": LeNet5, "reference_cnn": ReferenceCNN}[model.name](shape, num_classes)


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al. 1998, figure 2) with ReLU, max-pooling, and every map of C3 connected to all of S2."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        self.hidden1 = nn.Linear(16 * rows * columns, 120)
        self.hidden2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: images (B, C, H, W) -> logits (B, K)."""
        maps = max_pool2d(relu(self.conv1(images)), 2)
        maps = max_pool2d(relu(self.conv2(maps)), 2)
        hidden = relu(self.hidden2(relu(self.hidden1(maps.flatten(1)))))
        return self.head(hidden)


class ReferenceCNN(nn.Module):
    """One convolution of 32 filters of 3x3 without padding, ReLU, 2x2 max-pooling, one dense layer."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv = nn.Conv2d(channels, 32, 3)
        self.head = nn.Linear(32 * ((height - 2) // 2) * ((width - 2) // 2), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: images (B, C, H, W) -> logits (B, K)."""
        return self.head(max_pool2d(relu(self.conv(images)), 2).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016a, figure 5 left)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, 3, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Shapes: (B, channels, H, W) -> (B, width, H / stride, W / stride)."""
        inner = relu(self.norm1(self.conv1(maps)))
        return relu(self.norm2(self.conv2(inner)) + self.shortcut(maps))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut (He et al. 2016a, figure 5 right), the stride in the 3x3 one as
    in Goyal et al. 2017, section 5.1 ("v1.5")."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        outer = width * self.expansion
        self.conv1 = conv(channels, width, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outer, 1)
        self.norm3 = nn.BatchNorm2d(outer)
        self.shortcut = shortcut(channels, outer, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Shapes: (B, channels, H, W) -> (B, 4 width, H / stride, W / stride)."""
        inner = relu(self.norm1(self.conv1(maps)))
        inner = relu(self.norm2(self.conv2(inner)))
        return relu(self.norm3(self.conv3(inner)) + self.shortcut(maps))


def conv(channels: int, width: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A square convolution without bias, padded so that only the stride changes H and W."""
    return nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False)


def shortcut(channels: int, width: int, stride: int) -> nn.Module:
    """The identity, or a projection where a block changes the shape (He et al. 2016a, option B)."""
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(conv(channels, width, 1, stride), nn.BatchNorm2d(width))


class ResNet(nn.Module):
    """Residual network (He et al. 2016a, table 1). large: ImageNet's stem, else one 3x3 convolution at full size."""

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, ...],
        channels: int,
        num_classes: int,
        large: bool,
    ) -> None:
        super().__init__()
        first = STAGE_WIDTHS[0]
        self.stem = nn.Sequential(
            conv(channels, first, 7, 2) if large else conv(channels, first, 3),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity(),
        )
        blocks: list[nn.Module] = []
        inner = first
        for stage, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True)):
            for number in range(depth):
                blocks.append(block(inner, width, stride=2 if stage > 0 and number == 0 else 1))
                inner = width * block.expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inner, num_classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: images (B, C, H, W) -> logits (B, K)."""
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


def _initialise(module: nn.Module) -> None:
    """Convolutions as in He et al. 2015; each block starts as its shortcut (Goyal et al. 2017, section 5.1)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, BasicBlock):
        nn.init.zeros_(module.norm2.weight)
    elif isinstance(module, Bottleneck):
        nn.init.zeros_(module.norm3.weight)


def count_flops(model: nn.Module, shape: tuple[int, int, int], training: bool = False) -> int:
    """Floating-point operations of one image, a multiply-add being two, counted on the meta device.

    Args: training: of the forward and the backward pass, which has no gradient of the image; else of the former alone.
    """
    from copy import deepcopy

    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    shadow = deepcopy(model).to("meta").eval()
    with counter, torch.set_grad_enabled(training):
        logits = shadow(torch.empty(1, *shape, device="meta"))
        if training:
            logits.sum().backward()
    return counter.get_total_flops()

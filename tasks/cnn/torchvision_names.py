"""torchvision's names of a ResNet's weights, as its published files have them, and this project's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# timm's ResNets have the same names.
FIRST_BLOCK = "layer1.0.conv1.weight"
OUTER = {"conv1": "stem.0", "bn1": "stem.1", "fc": "head"}
INNER = {"bn1": "norm1", "bn2": "norm2", "bn3": "norm3", "downsample": "shortcut"}
BLOCK = re.compile(r"layer(\d)\.(\d+)\.(\w+)\.(.+)")


def from_torchvision(weights: Mapping[str, Tensor], depths: tuple[int, ...]) -> Mapping[str, Tensor]:
    """Weights of a torchvision ResNet under the names of `ResNet`; any others as they are.

    Args: depths: blocks of each stage; torchvision counts blocks within stages, `ResNet` through all of them.
    """
    if FIRST_BLOCK not in weights:
        return weights
    return {_own_name(name, depths): tensor for name, tensor in weights.items()}


def _own_name(name: str, depths: tuple[int, ...]) -> str:
    block = BLOCK.fullmatch(name)
    if block is None:
        layer, _, rest = name.partition(".")
        return f"{OUTER.get(layer, layer)}.{rest}"
    stage, number, layer, rest = block.groups()
    if int(number) >= (depths[int(stage) - 1] if int(stage) <= len(depths) else 0):
        return name  # of a deeper network, whose names the check of the weights then reports
    return f"blocks.{sum(depths[: int(stage) - 1]) + int(number)}.{INNER.get(layer, layer)}.{rest}"

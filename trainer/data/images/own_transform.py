"""An augmentation of the user's own, on batches of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from trainer.config.own_parts import TARGET, OwnTransformConfig
from trainer.data.images.config import ImageDataConfig
from trainer.errors import UserError
from trainer.parts import build_part, first_line, takes

KEY = "data.transform"


class OwnTransform:
    """Checks what an augmentation returns. It is no module: it has no weights that belong to the model.

    Args: config: names a class of callables, such as an nn.Module, or a function that returns one.
    Raises: UserError: it cannot be built.
    """

    def __init__(self, config: OwnTransformConfig) -> None:
        self.word = f"{KEY}.{TARGET}={config.target}"
        function = build_part(KEY, config, object, {})
        if not callable(function):
            raise UserError(f"{self.word}: gives a {type(function).__name__}, which cannot be called")
        self.function: Callable[..., Any] = function
        self.takes_draws = takes(getattr(self.function, "forward", self.function), "draws")

    @classmethod
    def of(cls, data: ImageDataConfig) -> Self | None:
        """The configured one; None where there is none."""
        return cls(data.transform) if data.transform is not None else None

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Args: images (B, C, H, W) float32 on a scale of 0 to 1; draws (B, 3). Returns: as the images.

        Raises: UserError: it fails, or returns something else.
        """
        if isinstance(self.function, nn.Module):
            self.function.to(images.device)
        try:
            result = self.function(images, draws=draws) if self.takes_draws else self.function(images)
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{self.word}: fails on images {tuple(images.shape)}: {reason}") from error
        if not isinstance(result, Tensor) or result.shape != images.shape or result.dtype != images.dtype:
            is_tensor = isinstance(result, Tensor)
            found = f"{tuple(result.shape)} {result.dtype}" if is_tensor else f"a {type(result).__name__}"
            raise UserError(f"{self.word}: returns {found}; {tuple(images.shape)} {images.dtype} is needed")
        return result

"""Raw inputs -> arrays -> results around an exported network, without torch.

The tasks' own preprocessing computes on the training device with the training half of the package. This is the same as
plain data and NumPy, so that an export is complete; the gate compares both on raw inputs.
"""

from __future__ import annotations

import base64
import io
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from trainer.data.images.decode import ImageForm, Unusable
from trainer.data.images.raw import read_image
from trainer.data.normal import normal
from trainer.data.texts.tables import TextColumns, text_problem
from trainer.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Arrays = dict[str, np.ndarray]


class _Plain(BaseModel):
    """Plain data: a key that is not listed is refused, so nothing in the file can name code."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Inputs(_Plain):
    """Raw inputs -> arrays."""

    def open(self, folder: Path) -> None:
        """Read the files that are named. Raises: UserError: one is damaged."""

    def listed(self, inputs: Any) -> Sequence[Any]:
        """Inputs as a list; what is one input by itself becomes a list of one."""
        is_one = isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Iterable)
        return [inputs] if is_one else list(inputs)

    @abstractmethod
    def arrays(self, inputs: Sequence[Any]) -> Arrays:
        """The network's arguments by name; axis 0 is the input. Raises: UserError: one cannot be used."""


class ImageInputs(_Inputs):
    """Files, bytes of files, Pillow images or arrays -> images (B, C, H, W) float32, (x / 255 - mean) / std."""

    kind: Literal["images"]
    form: ImageForm
    mean: list[float]
    std: list[float]

    def listed(self, inputs: Any) -> Sequence[Any]:
        """See _Inputs. An array (H, W) or (H, W, 3) is one image."""
        is_one = isinstance(inputs, np.ndarray) and inputs.ndim == 2 + (inputs.shape[-1] == 3)
        return [inputs] if is_one else super().listed(inputs)

    def arrays(self, inputs: Sequence[Any]) -> Arrays:
        """See _Inputs."""
        pixels = np.stack([self._read(number, value) for number, value in enumerate(inputs)]).astype(np.float32)
        mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (self.mean, self.std))
        return {"images": (pixels / np.float32(255) - mean) / std}

    def _read(self, number: int, value: Any) -> np.ndarray:
        try:
            return read_image(value, self.form)
        except Unusable as error:
            raise UserError(f"input {number}: {error}") from error


class TextInputs(_Inputs):
    """Texts, pairs, or rows as mappings -> input_ids, attention_mask, perhaps token_type_ids, each (B, W) int64.

    max_length: tokens, special ones included.
    """

    kind: Literal["texts"]
    tokenizer: str
    columns: TextColumns
    max_length: int
    pad_id: int
    takes_types: bool
    _tokenizer: Tokenizer

    def open(self, folder: Path) -> None:
        """See _Inputs."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(folder / self.tokenizer))
        except Exception as error:  # tokenizers raises no narrower class
            raise UserError(f"{folder / self.tokenizer}: cannot be read ({error})") from error
        tokenizer.enable_truncation(self.max_length, strategy="longest_first")
        object.__setattr__(self, "_tokenizer", tokenizer)

    def arrays(self, inputs: Sequence[Any]) -> Arrays:
        """See _Inputs."""
        rows = [self._texts(number, value) for number, value in enumerate(inputs)]
        encodings = self._tokenizer.encode_batch([tuple(row) if len(row) > 1 else row[0] for row in rows])
        shape = len(rows), max(len(encoding.ids) for encoding in encodings)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        mask, types = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            ids[row, :length], mask[row, :length] = encoding.ids, 1
            parts = encoding.sequence_ids
            types[row, parts.index(1) if 1 in parts else length : length] = 1
        arrays = {"input_ids": ids, "attention_mask": mask}
        return {**arrays, "token_type_ids": types} if self.takes_types else arrays

    def _texts(self, number: int, value: Any) -> list[str]:
        if isinstance(value, Mapping):
            texts = self.columns.texts(value)
        else:
            texts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
        is_pair = self.columns.text_pair is not None
        if len(texts) != 1 + is_pair:
            raise UserError(f"input {number}: {'a pair of texts' if is_pair else 'one text'} is expected")
        problem = next((problem for text in texts if (problem := text_problem(text))), None)
        if problem is not None:
            raise UserError(f"input {number}: {problem}")
        return texts


class NoiseInputs(_Inputs):
    """Numbers of latent points, or points (L,) -> noise (B, L) float32. size: L."""

    kind: Literal["noise"]
    size: int
    stream: int

    def listed(self, inputs: Any) -> Sequence[Any]:
        """See _Inputs. A number is that many points, an array (L,) is one."""
        if isinstance(inputs, int):
            return range(inputs)
        is_one = isinstance(inputs, np.ndarray) and inputs.ndim == 1
        return [inputs] if is_one else super().listed(inputs)

    def arrays(self, inputs: Sequence[Any]) -> Arrays:
        """See _Inputs."""
        return {"noise": np.stack([self._point(number, value) for number, value in enumerate(inputs)])}

    def _point(self, number: int, value: Any) -> np.ndarray:
        if isinstance(value, int):
            return normal(0, 0, np.array([value]), self.size, self.stream)[0]
        refusal = UserError(f"input {number}: neither an integer nor {self.size} finite numbers")
        try:
            point = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise refusal from error
        if point.shape != (self.size,) or not np.isfinite(point).all():
            raise refusal
        return point


class LabelOutputs(_Plain):
    """Logits (B, C) -> label, its probability, and all probabilities. digits: to round to; None leaves them."""

    kind: Literal["labels"]
    names: list[str]
    digits: int | None

    def results(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """One JSON-ready result a row."""
        shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        rows = shares.astype(np.float64)
        rows = rows if self.digits is None else rows.round(self.digits)
        return [
            {
                "label": self.names[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(self.names, row.tolist(), strict=True)),
            }
            for row in rows
        ]


class ScoreOutputs(_Plain):
    """Scores (B, 1) -> score, rounded to `digits`."""

    kind: Literal["score"]
    digits: int

    def results(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """One JSON-ready result a row."""
        return [{"score": float(value)} for value in outputs[:, 0].astype(np.float64).round(self.digits)]


class ImageOutputs(_Plain):
    """Images (B, C, H, W) in [-1, 1] -> PNG files in base64."""

    kind: Literal["images"]

    def results(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """One JSON-ready result a row."""
        pixels = ((outputs + 1.0) * 127.5).round().clip(0, 255).astype(np.uint8)
        return [{"png_base64": base64.b64encode(_png(image)).decode()} for image in pixels]


Inputs = Annotated[ImageInputs | TextInputs | NoiseInputs, Field(discriminator="kind")]
Outputs = Annotated[LabelOutputs | ScoreOutputs | ImageOutputs, Field(discriminator="kind")]


class PlainProcessing(_Plain):
    """Of an export: the content of processing.json."""

    inputs: Inputs
    outputs: Outputs


def _png(image: np.ndarray) -> bytes:
    """Shapes: image (C, H, W) uint8."""
    stream = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(stream, "PNG")
    return stream.getvalue()

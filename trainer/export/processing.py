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
from trainer.errors import UserError, shown

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

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

    def arrays(self, inputs: Sequence[Any]) -> Arrays:
        """The network's arguments by name; axis 0 is the input. Raises: UserError: one cannot be used."""
        return self.collated(self.prepared(inputs))

    @abstractmethod
    def from_json(self, value: Any) -> Any:
        """A raw input from its form in JSON, see docs/serving.md. Raises: UserError: it has another form."""

    @abstractmethod
    def to_json(self, value: Any) -> Any:
        """The form in JSON of a raw input such as a probe."""

    @abstractmethod
    def prepared(self, inputs: Sequence[Any]) -> list[Any]:
        """What each input becomes on its own, whatever batch it will be in. Raises: UserError: one cannot be used."""

    @abstractmethod
    def collated(self, prepared: Sequence[Any]) -> Arrays:
        """A batch of what `prepared` gives, as the network's arguments."""

    def length(self, prepared: Any) -> int:
        """The share of a prepared input in the work of its batch, which is as wide as its longest."""
        return 1


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

    def from_json(self, value: Any) -> bytes:
        """See _Inputs. Returns: an encoded image."""
        encoded = _members(value, "image")["image"]
        if not isinstance(encoded, str):
            raise UserError(f"image is of type {type(encoded).__name__}; it is a file in base64")
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError as error:
            raise UserError("image is not base64") from error

    def to_json(self, value: np.ndarray) -> Any:
        """See _Inputs. Args: value: (H, W) or (H, W, 3) uint8."""
        stream = io.BytesIO()
        Image.fromarray(value).save(stream, "PNG")
        return {"image": base64.b64encode(stream.getvalue()).decode()}

    def prepared(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        """See _Inputs. Returns: pixels (C, H, W) uint8."""
        return [self._read(number, value) for number, value in enumerate(inputs)]

    def collated(self, prepared: Sequence[np.ndarray]) -> Arrays:
        """See _Inputs."""
        pixels = np.stack(prepared).astype(np.float32)
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

        # Beside this file, where its checksum was compared.
        if Path(self.tokenizer).name != self.tokenizer:
            raise UserError(f"{folder}: its tokenizer is at {self.tokenizer}, outside of the export's folder")
        try:
            tokenizer = Tokenizer.from_file(str(folder / self.tokenizer))
        except Exception as error:  # tokenizers raises no narrower class
            raise UserError(f"{folder / self.tokenizer}: cannot be read ({error})") from error
        tokenizer.enable_truncation(self.max_length, strategy="longest_first")
        object.__setattr__(self, "_tokenizer", tokenizer)

    @property
    def names(self) -> list[str]:
        """Of an input's members in JSON."""
        return ["text"] if self.columns.text_pair is None else ["text", "text_pair"]

    def from_json(self, value: Any) -> list[str]:
        """See _Inputs. A single text may stand by itself. Returns: the texts."""
        members = _members({"text": value} if isinstance(value, str) else value, *self.names)
        for name, text in members.items():
            problem = text_problem(text)
            if problem is not None:
                raise UserError(f"{name}: {problem}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"{name}: has half of a surrogate pair") from error
        return [members[name] for name in self.names]

    def to_json(self, value: str | Sequence[str]) -> Any:
        """See _Inputs."""
        return dict(zip(self.names, [value] if isinstance(value, str) else value, strict=True))

    def prepared(self, inputs: Sequence[Any]) -> list[Encoding]:
        """See _Inputs."""
        rows = [self._texts(number, value) for number, value in enumerate(inputs)]
        return self._tokenizer.encode_batch([tuple(row) if len(row) > 1 else row[0] for row in rows])

    def length(self, prepared: Any) -> int:
        """See _Inputs. Tokens, special ones included."""
        return len(prepared.ids)

    def collated(self, prepared: Sequence[Encoding]) -> Arrays:
        """See _Inputs."""
        shape = len(prepared), max(len(encoding.ids) for encoding in prepared)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        mask, types = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, encoding in enumerate(prepared):
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

    def from_json(self, value: Any) -> int | list[float]:
        """See _Inputs. The number of a point of seed 0, or a point."""
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and 0 <= value < 2**32:
            return value
        if isinstance(value, list) and len(value) == self.size and all(type(x) in (int, float) for x in value):
            return value
        raise UserError(f"neither an integer from 0 to 2^32 - 1 nor {self.size} numbers")

    def to_json(self, value: int) -> Any:
        """See _Inputs."""
        return value

    def prepared(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        """See _Inputs. Returns: points (L,)."""
        return [self._point(number, value) for number, value in enumerate(inputs)]

    def collated(self, prepared: Sequence[np.ndarray]) -> Arrays:
        """See _Inputs."""
        return {"noise": np.stack(prepared)}

    def points(self, count: int, seed: int) -> list[np.ndarray]:
        """The latent points (L,) that the verb `predict` generates images from."""
        return list(normal(seed, 0, np.arange(count), self.size, self.stream))

    def _point(self, number: int, value: Any) -> np.ndarray:
        if isinstance(value, int):
            return normal(0, 0, np.array([value]), self.size, self.stream)[0]
        refusal = UserError(f"input {number}: neither an integer nor {self.size} finite numbers")
        try:
            point = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError, OverflowError) as error:
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


def _members(value: Any, *names: str) -> dict[str, Any]:
    """The members of an object that has these alone. Raises: UserError: it has others, or is no object."""
    if not isinstance(value, dict):
        raise UserError(f"an object with {' and '.join(names)} is needed, not {type(value).__name__}")
    for name in names:
        if name not in value:
            raise UserError(f"{name} is missing")
    for name in value:
        if name not in names:
            raise UserError(f"{shown(name)} is not known here; possible: {', '.join(names)}")
    return value


def _png(image: np.ndarray) -> bytes:
    """Shapes: image (C, H, W) uint8."""
    stream = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(stream, "PNG")
    return stream.getvalue()

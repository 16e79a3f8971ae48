"""What a model trained on images needs to know of its data: kept in the run directory, so a run is self-contained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trainer.data.images.batches import ImageTransform
from trainer.data.images.config import ImageDataConfig
from trainer.data.images.decode import ImageForm
from trainer.data.images.own_transform import OwnTransform
from trainer.errors import Problem, UserError
from trainer.run.files import INPUT_SPEC_FILE, write_json


@dataclass(frozen=True)
class ImageInputSpec:
    """form: of every image. class_names: in the order of the network's outputs, empty without labels. mean, std: of the
    training images per channel, on a scale of 0 to 1."""

    form: ImageForm
    class_names: list[str]
    mean: list[float]
    std: list[float]

    def write(self, run_dir: Path) -> None:
        """Write inputs.json; JSON keeps every bit of a float."""
        write_json(run_dir / INPUT_SPEC_FILE, asdict(self))

    @classmethod
    def read(cls, run_dir: Path) -> ImageInputSpec:
        """The spec of a run. Raises: UserError: the run has none, or it is damaged."""
        path = run_dir / INPUT_SPEC_FILE
        try:
            spec = TypeAdapter(cls).validate_json(path.read_bytes())
        except FileNotFoundError as error:
            reason = (
                f"run={run_dir}: no {INPUT_SPEC_FILE}, which says how images were converted and what the classes are"
            )
            raise UserError(reason, "the run is of an earlier version or incomplete; train it again") from error
        except (OSError, ValidationError) as error:
            raise UserError(f"run={run_dir}: {INPUT_SPEC_FILE} is damaged, or not that of a run on images") from error
        if not len(spec.mean) == len(spec.std) == spec.form.channels or min(spec.std) <= 0:
            raise UserError(f"run={run_dir}: {INPUT_SPEC_FILE} is damaged: mean and std do not fit the channels")
        return spec

    def transform(
        self, crop_padding: int = 0, flip: bool = False, channels_last: bool = False, own: OwnTransform | None = None
    ) -> ImageTransform:
        """Converts 8-bit images to a network's input with the run's normalisation."""
        return ImageTransform(self.mean, self.std, crop_padding, flip, channels_last, own)

    def conflicts(self, data: ImageDataConfig) -> list[Problem]:
        """Configured values that the run, which is already trained, was not trained with."""
        form = self.form
        trained = {
            "image_size": data.image_size if (data.image_size,) * 2 == (form.height, form.width) else form.height,
            "channels": form.channels,
            "resize": form.resize,
            "mean": self.mean,
            "std": self.std,
        }
        return [
            Problem(f"data.{key}", getattr(data, key), f"the run was trained with {json.dumps(value)}")
            for key, value in trained.items()
            if getattr(data, key) not in (None, value)
        ]

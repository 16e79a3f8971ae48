"""The folder of a trained application: which runs it uses, from which scores on it answers, and its questions."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from examples.customer_service.options import TrainOptions
from examples.customer_service.thresholds import Thresholds
from trainer import UserError

FILE = "application.json"
OUT_OF_SCOPE = "out_of_scope"  # a split without intents, where the source has such questions


@dataclass(frozen=True)
class Application:
    """options: what `train` was called with. intents_run, matcher_run: run directories below the folder; matcher_run is
    None where retrieval orders by similarity alone.
    """

    options: TrainOptions
    intents_run: str
    matcher_run: str | None
    thresholds: Thresholds

    def write(self, out: Path) -> None:
        """Write the file at once, so that a reader sees the old or the new one."""
        staged = out / f".{FILE}"
        staged.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")
        staged.replace(out / FILE)

    @classmethod
    def read(cls, out: Path) -> Application:
        """Raises: UserError: nothing was trained there, or the file is damaged."""
        try:
            values = json.loads((out / FILE).read_text(encoding="utf-8"))
            options, thresholds = TrainOptions(**values.pop("options")), Thresholds(**values.pop("thresholds"))
            return cls(options=options, thresholds=thresholds, **values)
        except FileNotFoundError as error:
            train = "python -m examples.customer_service train"
            raise UserError(f"out={out}: has no {FILE}", f"train first: {train} out={out}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{out / FILE}: damaged: {error}") from error


def split_file(out: Path, split: str) -> Path:
    """The questions of a split."""
    return out / "data" / f"{split}.csv"

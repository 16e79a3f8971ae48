"""A repository of the Hugging Face Hub: the exports, and a model card written from what was measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment

from trainer.deploy.source import Export, Source
from trainer.export.processing import ImageInputs, PlainProcessing, TextInputs
from trainer.run.files import HF_DIR, MODEL_FILE
from trainer.run.stored_config import read_stored_config

CARD_FILE = "README.md"
PIPELINES = {
    "texts": "text-classification",
    "pairs": "text-classification",
    "images": "image-classification",
    "noise": "unconditional-image-generation",
}


def write_hub(source: Source, environment: Environment, folder: Path) -> None:
    """Write README.md, a folder for each export, and where the run has it the model as transformers loads it."""
    for name, export in source.exports.items():
        shutil.copytree(export.folder, folder / name)
    has_transformers = (source.run_dir / HF_DIR).is_dir()
    if has_transformers:
        shutil.copytree(source.run_dir / HF_DIR, folder, dirs_exist_ok=True)
    text = environment.get_template("README.md.j2").render(_facts(source, has_transformers))
    (folder / CARD_FILE).write_text(text, encoding="utf-8")


def _facts(source: Source, has_transformers: bool) -> dict[str, Any]:
    """What the card says."""
    first = next(iter(source.exports.values()))
    config = read_stored_config(source.run_dir).config
    attempt = source.record["attempts"][-1]
    kind = _kind(first.processing)
    return {
        "front": _front_matter(source, first, config.data.name, has_transformers),
        "name": source.name,
        "task": config.task.name,
        "model": config.model.name,
        "data": config.data.name,
        "labels": getattr(first.processing.outputs, "names", None),
        "exports": source.exports,
        "parity": first.manifest.parity,
        "versions": attempt.get("versions", {}),
        "hardware": attempt.get("hardware", {}),
        "git": (attempt.get("git") or {}).get("sha"),
        "hash": source.record.get("hash"),
        "kind": kind,
        "example": _example(first.processing),
        "has_transformers": has_transformers,
        "weights": next((name for name, each in source.exports.items() if MODEL_FILE in each.manifest.files), None),
    }


def _front_matter(source: Source, export: Export, data: str, has_transformers: bool) -> str:
    """YAML that the Hub reads. No license: that is the owner's to state."""
    from huggingface_hub import EvalResult, ModelCardData

    parity, pipeline = export.manifest.parity, _pipeline(export.processing)
    results = None
    if parity.metric is not None:
        result = EvalResult(
            task_type=pipeline,
            dataset_type=data,
            dataset_name=data,
            dataset_split=parity.measured_on,
            metric_type=parity.metric,
            metric_value=parity.of_export,
        )
        results = [result]
    card = ModelCardData(
        model_name=source.name,
        library_name="transformers" if has_transformers else None,
        pipeline_tag=pipeline,
        tags=[export.manifest.task, *source.exports],
        eval_results=results,
    )
    return card.to_yaml()


def _kind(processing: PlainProcessing) -> str:
    inputs = processing.inputs
    return "pairs" if isinstance(inputs, TextInputs) and inputs.columns.text_pair is not None else inputs.kind


def _example(processing: PlainProcessing) -> str:
    """Inputs as Python."""
    inputs = processing.inputs
    if isinstance(inputs, ImageInputs):
        channels, height, width = inputs.form.shape
        return f'[Image.new("{"L" if channels == 1 else "RGB"}", ({width}, {height}))]'
    if isinstance(inputs, TextInputs):
        return '["a text", "another one"]' if inputs.columns.text_pair is None else '[("a text", "the other one")]'
    return "4"


def _pipeline(processing: PlainProcessing) -> str:
    """The Hub's word for the task."""
    return PIPELINES[_kind(processing)]

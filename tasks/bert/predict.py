"""The verb predict: a file of texts in, the same rows with label and probabilities out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tasks.bert.config import PredictArguments
from tasks.bert.data import TextData, check_columns
from tasks.bert.module import BertModule
from trainer.collectives import all_reduce_sum
from trainer.config.schema import Config
from trainer.data.samplers import MicroIndices
from trainer.data.sources import FORMATS, Source, load_splits, path_problems
from trainer.data.texts.buffer import EncodedTexts, TokenBuffer, TokenSet
from trainer.data.texts.tokenization import ROWS_PER_CHUNK, check_texts, encode_texts
from trainer.errors import ConfigError, Problem, UserError

if TYPE_CHECKING:
    import datasets

DIGITS = 6  # of probabilities and scores; below that, float32 sums depend on how many threads made them


def predict(config: Config, module: BertModule, data: TextData, arguments: PredictArguments, run_dir: Path) -> None:
    """See TaskSpec.predict. Every rank computes its batches; rank 0 writes all rows, in the order of the input.

    Raises: UserError: the input cannot be read, lacks a column or holds an empty text.
    """
    output = output_path(arguments, run_dir)
    rows = load_splits(Source(None, None, arguments.input))["train"]
    check_columns(rows, "input", dict(zip(("data.text", "data.text_pair"), data.columns, strict=False)))
    outputs = compute_outputs(config, module, token_set(rows, data))
    if is_first_rank():
        write_rows(rows, result_columns(outputs, data.labels.names), output)
        print(f"{len(rows):,} rows -> {output}", file=sys.stderr)


def output_path(arguments: PredictArguments, run_dir: Path) -> Path:
    """Where the result goes. Raises: ConfigError: input or output is no file of a format that is read and written."""
    problems = path_problems(arguments.input, "input")
    if not problems and not Path(arguments.input).expanduser().is_file():
        problems = [Problem("input", arguments.input, "is a directory; a file is needed")]
    default = run_dir / f"predictions{Path(arguments.input).suffix}"
    output = Path(arguments.output).expanduser() if arguments.output else default
    if output.suffix.lower() not in FORMATS:
        problems.append(Problem("output", output, f"no format to write; possible: {', '.join(sorted(FORMATS))}"))
    elif not output.parent.is_dir():
        problems.append(Problem("output", output, f"no such directory: {output.parent}"))
    if problems:
        raise ConfigError(problems)
    return output


def token_set(rows: datasets.Dataset, data: TextData) -> TokenSet:
    """The input's texts as tokens in memory: a file is predicted once, so nothing goes into the cache."""
    chunks: list[EncodedTexts] = []
    for first in range(0, len(rows), ROWS_PER_CHUNK):
        part = rows[first : first + ROWS_PER_CHUNK]
        texts = [part[column] for column in data.columns]
        for column, values in zip(data.columns, texts, strict=True):
            check_texts(values, column, "input", first)
        pairs = texts[1] if len(texts) > 1 else None
        chunks.append(encode_texts(texts[0], pairs, data.tokenizer, data.data.max_length))
    return data.token_set(TokenBuffer.from_chunks(chunks), np.zeros(len(rows), dtype=np.int64))


def predict_batches(lengths: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[MicroIndices]:
    """One rank's batches: texts of like length together, dealt to the ranks in turn, equally many on each.

    A batch holds the same texts on any number of ranks, so their results do not depend on it either.
    """
    order = np.argsort(lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    num_batches = -(-len(batches) // world_size)
    mine = [MicroIndices(batch, len(batch)) for batch in batches[rank::world_size]]
    return mine + [MicroIndices(order[:1], 0)] * (num_batches - len(mine))


def compute_outputs(config: Config, module: BertModule, texts: TokenSet) -> np.ndarray:
    """Probabilities (N, C) of classes, or scores (N, 1), of all texts on every rank, float64."""
    is_distributed = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if is_distributed else 0
    world_size = torch.distributed.get_world_size() if is_distributed else 1
    device = next(module.parameters()).device
    # Each row is filled by one rank and is 0 on the others, so the sum over ranks is the row itself.
    outputs = torch.zeros(len(texts), module.num_outputs, device=device, dtype=torch.float64)
    batches = predict_batches(texts.buffer.lengths, config.batch.eval_size, rank, world_size)
    with torch.inference_mode(), precision_context(config, device):
        for micro in batches:
            batch = texts.gather(micro.indices, micro.num_valid, 0).to(device)
            logits = module.outputs(module.model, batch)
            outputs[batch.indices[: micro.num_valid]] = probabilities(logits, module).to(torch.float64)
    return all_reduce_sum(outputs).cpu().numpy().round(DIGITS)


def probabilities(logits: Tensor, module: BertModule) -> Tensor:
    """Softmax over classes; scores as they are. logits (B, C)."""
    return logits if module.task.kind == "regression" else logits.softmax(dim=-1)


def precision_context(config: Config, device: torch.device) -> AbstractContextManager[object]:
    """The arithmetic that the run was trained and evaluated in."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.trainer.precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def result_columns(outputs: np.ndarray, names: list[str] | None) -> Mapping[str, list[object]]:
    """Columns to add: a score; or the label, its probability, and one probability a class."""
    if names is None:
        return {"predicted_score": outputs[:, 0].tolist()}
    best = outputs.argmax(axis=1)
    columns: dict[str, list[object]] = {"predicted_label": [names[number] for number in best]}
    columns["probability"] = outputs.max(axis=1).tolist()
    return columns | {f"probability_{name}": outputs[:, number].tolist() for number, name in enumerate(names)}


def write_rows(rows: datasets.Dataset, columns: Mapping[str, list[object]], path: Path) -> None:
    """Rows with more columns, in the format of the path's ending. Raises: UserError: it cannot be written."""
    clash = [name for name in columns if name in rows.column_names]
    if clash:
        raise UserError(f"input has a column {clash[0]}, which predict writes", "rename it")
    frame = rows.to_pandas()
    frame = frame.assign(**columns)  # pyright: ignore[reportAttributeAccessIssue]
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            frame.to_parquet(path, index=False)
        elif suffix in (".json", ".jsonl"):
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        else:
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    except OSError as error:
        raise UserError(f"output={path}: cannot be written: {error}") from error


def is_first_rank() -> bool:
    """Whether this process writes."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0

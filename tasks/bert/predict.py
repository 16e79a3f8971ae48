"""Files of the verb predict: rows of texts in, the same rows with labels and probabilities out."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.bert.config import PredictArguments
from trainer.data.samplers import MicroIndices
from trainer.data.texts.config import COMPRESSIONS, ENDINGS, CsvFormat, file_kind, file_problems
from trainer.data.texts.files import read_rows
from trainer.data.texts.place import row_name
from trainer.data.texts.tables import TextColumns, text_problem
from trainer.errors import ConfigError, Problem, UserError, nearest

INPUT_KINDS = tuple(ENDINGS)
OUTPUT_ENDINGS = (".csv", ".json", ".jsonl", ".parquet", ".tsv")
NUM_NAMED_ROWS = 5


@dataclass(frozen=True)
class InputRows:
    """Rows of the input that are written, in its order.

    columns: of the input. texts: of each row, one or two; None for a row without a prediction. bad_rows: what is wrong
    with those rows and with the rows that were left out, as in messages.
    """

    columns: list[str]
    rows: list[Mapping[str, Any]]
    texts: list[list[str] | None]
    bad_rows: list[str]


def csv_format_of(arguments: PredictArguments, trained: CsvFormat) -> CsvFormat:
    """How the input is written: as the training data, unless the arguments say otherwise."""
    return CsvFormat(
        delimiter=arguments.delimiter or trained.delimiter,
        header=trained.header if arguments.header is None else arguments.header,
        quoting=arguments.quoting or trained.quoting,
        encoding=arguments.encoding or trained.encoding,
    )


def output_path(arguments: PredictArguments, run_dir: Path, csv_format: CsvFormat) -> Path:
    """Where the result is written. Raises: ConfigError: input or output is no file that can be read or written."""
    source = Path(arguments.input).expanduser()
    problems = [*file_problems("input", arguments.input, INPUT_KINDS), *csv_format.problems("")]
    output = Path(arguments.output).expanduser() if arguments.output else run_dir / f"predictions{_ending(source)}"
    if output.suffix.lower() not in OUTPUT_ENDINGS:
        advice = f"no format to write; possible: {', '.join(OUTPUT_ENDINGS)}"
        problems.append(Problem("output", output, advice))
    elif output.is_dir() or not output.parent.is_dir():
        advice = "is a directory" if output.is_dir() else f"no such directory: {output.parent}"
        problems.append(Problem("output", output, advice))
    elif output.exists() and source.exists() and output.samefile(source):
        problems.append(Problem("output", output, "is the input; name another file with output=FILE"))
    if problems:
        raise ConfigError(problems)
    return output


def _ending(source: Path) -> str:
    return Path(source.stem).suffix if source.suffix.lower() in COMPRESSIONS else source.suffix


def read_input(
    arguments: PredictArguments, csv_format: CsvFormat, columns: TextColumns, results: Sequence[str]
) -> InputRows:
    """Read the input. Args: columns: of the run's training data. results: columns that predict adds.

    Raises: UserError: the file cannot be read, a column is missing or in the way, or, with on_bad_row=error, a row has
    no text.
    """
    path = Path(arguments.input).expanduser()
    wanted = TextColumns(columns.text, columns.text_pair, None)
    found = read_rows(path, "input", csv_format, wanted.named)
    for column in wanted.named:
        if found.columns and column not in found.columns:
            raise UserError(f"input={path}: no column {column}; {nearest(column, found.columns)}")
    read = InputRows(list(found.columns), [], [], [])
    for row in found.rows:
        clash = next((name for name in results if name in row.values), None)
        if clash is not None:
            raise UserError(f"input={path}: has a column {clash}, which predict writes", "rename or remove it")
        texts = wanted.texts(row.values)
        problem = next((problem for text in texts if (problem := text_problem(text))), None)
        if problem is not None:
            if arguments.on_bad_row == "error":
                remedy = "on_bad_row=skip leaves such rows out, on_bad_row=null writes them without a prediction"
                raise UserError(f"{row_name(f'input={path}', row.number, row.line)}: {problem}", remedy)
            read.bad_rows.append(f"{row_name('', row.number, row.line).removeprefix(': ')}: {problem}")
            if arguments.on_bad_row == "skip":
                continue
        read.rows.append(row.values)
        read.texts.append(texts if problem is None else None)
    return read


def report(read: InputRows, arguments: PredictArguments, output: Path) -> None:
    """Print on stderr what was written, and which rows have no prediction."""
    if read.bad_rows:
        action = "left out" if arguments.on_bad_row == "skip" else "without a prediction"
        named = "; ".join(read.bad_rows[:NUM_NAMED_ROWS])
        more = len(read.bad_rows) - NUM_NAMED_ROWS
        count = "1 row" if len(read.bad_rows) == 1 else f"{len(read.bad_rows):,} rows"
        print(f"note: {count} {action}: {named}{f'; and {more:,} more' if more > 0 else ''}", file=sys.stderr)
    count = "1 row" if len(read.rows) == 1 else f"{len(read.rows):,} rows"
    print(f"{count} -> {output}", file=sys.stderr)


def predict_batches(lengths: np.ndarray, batch_size: int, rank: int, world_size: int) -> list[MicroIndices]:
    """One rank's batches: texts of similar length together, dealt to the ranks in turn, equally many on each.

    A batch holds the same texts on any number of ranks, so their results do not depend on it either.
    """
    order = np.argsort(lengths, kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    num_batches = -(-len(batches) // world_size)
    mine = [MicroIndices(batch, len(batch)) for batch in batches[rank::world_size]]
    return mine + [MicroIndices(order[:1], 0)] * (num_batches - len(mine))


def result_names(label_names: Sequence[str] | None) -> list[str]:
    """Columns that predict adds: a score; or the label, its probability, and one probability for each class."""
    if label_names is None:
        return ["predicted_score"]
    return ["predicted_label", "probability", *(f"probability_{name}" for name in label_names)]


def result_rows(
    outputs: np.ndarray, texts: Sequence[list[str] | None], label_names: Sequence[str] | None
) -> Iterator[list[Any]]:
    """Values of these columns, for each row. Args: outputs (N, C), of the rows that have texts, in their order."""
    names, values = result_names(label_names), iter(outputs)
    for row_texts in texts:
        if row_texts is None:
            yield [None] * len(names)
            continue
        row = next(values)
        if label_names is None:
            yield [float(row[0])]
        else:
            yield [label_names[int(row.argmax())], float(row.max()), *row.tolist()]


def write_rows(read: InputRows, names: Sequence[str], results: Iterator[list[Any]], output: Path, source: Path) -> None:
    """Write the rows with their results, in the format of the output's ending, or leave an existing file as it is.

    Raises: UserError: the file cannot be written.
    """
    staged = output.with_name(f".{output.name}.{os.getpid()}")
    rows = [{**row, **dict(zip(names, values, strict=True))} for row, values in zip(read.rows, results, strict=True)]
    try:
        if output.suffix.lower() == ".parquet":
            _write_parquet(rows, read.columns, names, staged, source)
        elif output.suffix.lower() in (".json", ".jsonl"):
            _write_json(rows, staged, is_array=output.suffix.lower() == ".json")
        else:
            _write_csv(rows, [*read.columns, *names], staged, "\t" if output.suffix.lower() == ".tsv" else ",")
        staged.replace(output)
    except OSError as error:
        raise UserError(f"output={output}: cannot be written: {error}") from error
    finally:
        staged.unlink(missing_ok=True)


def _write_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Path, delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(column) for column in columns] for row in rows)


def _write_json(rows: Sequence[Mapping[str, Any]], path: Path, is_array: bool) -> None:
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    with path.open("w", encoding="utf-8") as file:
        if is_array:
            file.write("[\n" + ",\n".join(lines) + "\n]\n")
        else:
            file.writelines(f"{line}\n" for line in lines)


def _write_parquet(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], names: Sequence[str], path: Path, source: Path
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    # The types of a Parquet input are kept; of a text file they are what its values are.
    schema = parquet.read_schema(source) if file_kind(source) == "parquet" else None
    types = [None if schema is None else schema.field(column).type for column in columns]
    arrays = {c: pa.array([row.get(c) for row in rows], t) for c, t in zip(columns, types, strict=True)}
    try:
        parquet.write_table(pa.table(arrays | {name: pa.array([row[name] for row in rows]) for name in names}), path)
    except pa.ArrowException as error:
        raise OSError(str(error)) from error

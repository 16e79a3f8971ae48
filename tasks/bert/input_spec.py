"""What a trained model needs of its data: columns, label names, lengths and tokenizer, kept in the run directory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase

from tasks.bert.tokenizers import load_tokenizer
from trainer.data.texts.config import CsvFormat
from trainer.data.texts.tables import TextColumns
from trainer.errors import UserError
from trainer.run.files import INPUT_SPEC_FILE, write_json

TOKENIZER_DIR = "tokenizer"


@dataclass(frozen=True)
class InputSpec:
    """Of a run.

    kind: as task.kind. columns and csv_format: of the training data. label_names: in the order of the outputs; None for
    scores. class_counts: training texts of each class. max_length: tokens. truncated_share, unknown_share: of the
    training texts and of their tokens. network: the transformers configuration of the network;
    empty for one of the user's own.
    """

    kind: Literal["classification", "regression"]
    columns: TextColumns
    csv_format: CsvFormat
    label_names: list[str] | None
    class_counts: list[int] | None
    max_length: int
    truncated_share: float
    unknown_share: float
    network: dict[str, Any]

    def write(self, run_dir: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the spec and, beside it, the tokenizer."""
        tokenizer.save_pretrained(run_dir / TOKENIZER_DIR)
        write_json(run_dir / INPUT_SPEC_FILE, asdict(self))

    @classmethod
    def read(cls, run_dir: Path) -> InputSpec:
        """The spec of a run. Raises: UserError: it is missing or damaged."""
        file = run_dir / INPUT_SPEC_FILE
        try:
            return TypeAdapter(cls).validate_json(file.read_bytes())
        except OSError as error:
            raise UserError(
                f"run={run_dir}: no readable {INPUT_SPEC_FILE}", "the run has not begun to train"
            ) from error
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            where = ".".join(map(str, detail["loc"]))
            raise UserError(f"{file}: damaged: {where} {detail['msg']}".replace("  ", " ")) from error


def read_tokenizer(run_dir: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a run. Raises: UserError: it is missing or damaged."""
    return load_tokenizer(run_dir / TOKENIZER_DIR)

"""A trained encoder on raw texts, from its run directory alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tasks.bert.config import BertConfig, OwnTextModelConfig, PredictArguments
from tasks.bert.input_spec import InputSpec, read_tokenizer
from tasks.bert.models import empty_network, takes_types
from tasks.bert.own_model import build_own_model, own_takes_types
from tasks.bert.predict import (
    csv_format_of,
    output_path,
    predict_batches,
    read_input,
    report,
    result_names,
    result_rows,
    write_rows,
)
from tasks.bert.unpadded import can_skip_padding, without_padding
from trainer.collectives import all_reduce_sum, broadcast_json, is_first_rank
from trainer.data.texts.buffer import EncodedTexts, TokenBatch, TokenBuffer, TokenSet
from trainer.data.texts.tables import text_problem
from trainer.data.texts.tokenization import ROWS_PER_CHUNK, encode_texts
from trainer.errors import UserError
from trainer.inference import (
    NUM_PROBES,
    BadInput,
    Evaluation,
    ExampleInputs,
    ExportableInference,
    Processing,
    evaluated_set,
)
from trainer.run.files import MODEL_FILE

if TYPE_CHECKING:
    from trainer.data.module import DataModule

DIGITS = 6  # of probabilities and scores; below that, float32 sums depend on the number of threads
# Names of what inference needs among the tensors of the training module.
TARGETS = ("target_mean", "target_std")
NAMES = ("model.", *TARGETS)
TOKENIZER_FILE = "tokenizer.json"


class TextNetwork(nn.Module):
    """An encoder with its head as a function of tensors to one tensor.

    target_mean, target_std: of the training scores, where the run has standardised them.
    """

    target_mean: Tensor
    target_std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("target_mean", torch.tensor(0.0))
        self.register_buffer("target_std", torch.tensor(1.0))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits or scores.

        Shapes: B texts, W width, C classes, or 1 for scores. Args: int64 tensors (B, W).
        Returns: (B, C) float32.
        """
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        logits = (result if isinstance(result, Tensor) else result.logits).float()
        return logits * self.target_std + self.target_mean


class BertInference(ExportableInference):
    """Labels with probabilities, or scores, of texts or pairs of texts."""

    prefix = ""

    def __init__(
        self,
        config: BertConfig,
        network: TextNetwork,
        device: torch.device,
        spec: InputSpec,
        tokenizer: PreTrainedTokenizerBase,
        takes_types: bool,
    ) -> None:
        super().__init__(config, network, device)
        self.spec, self.tokenizer = spec, tokenizer
        self.pad_to_multiple_of = config.data.pad_to_multiple_of
        self.metric = "pearson" if spec.label_names is None else "accuracy"
        self.is_pair = spec.columns.text_pair is not None
        self.takes_types = takes_types
        self.can_skip_padding = can_skip_padding(network.model)

    @classmethod
    def load(cls, config: BertConfig, run_dir: Path, device: torch.device) -> Self:
        """See Inference."""
        spec = InputSpec.read(run_dir)
        tokenizer, is_pair = read_tokenizer(run_dir), spec.columns.text_pair is not None
        if isinstance(config.model, OwnTextModelConfig):
            num_outputs = len(spec.label_names or [None])
            model: nn.Module = build_own_model(config.model, tokenizer, num_outputs, spec.max_length, is_pair)
            with_types = own_takes_types(model, is_pair)
        else:
            model = encoder = empty_network(spec.network)
            with_types = takes_types(encoder, is_pair)
        network = TextNetwork(model)
        load_network(network, run_dir)
        return cls(config, network, device, spec, tokenizer, with_types)

    def preprocess(self, inputs: Sequence[Any]) -> Mapping[str, Tensor]:
        """See Inference.

        Args: inputs: texts; or pairs as (first, second); or rows as mappings with the columns of the training data.
        """
        rows = [self._texts(number, value) for number, value in enumerate(inputs)]
        batch = self.encode(rows)
        width = max(map(len, batch.ids))
        pad_id: Any = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in batch.ids])
        tokens = TokenBatch(
            indices=torch.arange(len(rows)),
            num_valid=len(rows),
            epoch=0,
            input_ids=ids,
            lengths=torch.tensor([len(row) for row in batch.ids]),
            pair_starts=torch.tensor(batch.pair_starts),
            labels=torch.zeros(len(rows)),
            is_full=False,
        )
        return self.network_inputs(tokens.to(self.device))

    def encode(self, rows: Sequence[Sequence[str]]) -> EncodedTexts:
        """Token ids of rows, each a text or a text and its pair, cut to the length of training."""
        pairs = [row[1] for row in rows] if self.is_pair else None
        return encode_texts([row[0] for row in rows], pairs, self.tokenizer, self.spec.max_length)

    def network_inputs(self, batch: TokenBatch) -> Mapping[str, Tensor]:
        """The network's arguments of a padded batch."""
        mask = batch.attention_mask()
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": torch.ones_like(batch.input_ids) if mask is None else mask,
        }
        return inputs | ({"token_type_ids": batch.token_type_ids()} if self.takes_types else {})

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over classes, or the scores themselves: (B, C) float64 on the outputs' device."""
        values = outputs.float() if self.spec.label_names is None else outputs.float().softmax(dim=-1)
        return values.to(torch.float64)

    def postprocess(self, outputs: Tensor) -> list[dict[str, Any]]:
        """See Inference: {"score"}, or {"label", "probability", "probabilities": {label: probability}}."""
        names = self.spec.label_names
        rows = self.probabilities(outputs).cpu().numpy().round(DIGITS)
        if names is None:
            return [{"score": float(row[0])} for row in rows]
        return [
            {
                "label": names[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(names, row.tolist(), strict=True)),
            }
            for row in rows
        ]

    def example_inputs(self) -> ExampleInputs:
        """See Inference."""
        texts = ("a short text", "a text that is a little longer")
        tensors = self.preprocess([(text, text) for text in texts] if self.is_pair else texts)
        return ExampleInputs(tensors, {name: {0: "batch", 1: "length"} for name in tensors})

    @contextmanager
    def without_padding(self) -> Iterator[nn.Module]:
        """See ExportableInference."""
        encoder = self.network.get_submodule("model")
        with without_padding(encoder) if can_skip_padding(encoder) else nullcontext():
            yield self.network

    def processing(self) -> Processing:
        """See ExportableInference."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        inputs = {
            "kind": "texts",
            "tokenizer": TOKENIZER_FILE,
            "columns": asdict(self.spec.columns),
            "max_length": self.spec.max_length,
            "pad_id": self.tokenizer.pad_token_id,
            "takes_types": self.takes_types,
        }
        names = self.spec.label_names
        outputs = {"kind": "score"} if names is None else {"kind": "labels", "names": names}
        # These two remain from the last call.
        files = {TOKENIZER_FILE: json.dumps({**state, "truncation": None, "padding": None})}
        return Processing(inputs, {**outputs, "digits": DIGITS}, files)

    def probes(self) -> Sequence[Any]:
        """Words of the vocabulary, from one to more than the model reads."""
        words = [word for word in sorted(self.tokenizer.get_vocab()) if word.isalpha()]
        lengths = np.linspace(1, self.spec.max_length + 1, NUM_PROBES).astype(int)
        texts = [" ".join(words[number % len(words)] for number in range(length)) for length in lengths]
        return [(text, text) for text in texts] if self.is_pair else texts

    def evaluation(self, data: DataModule) -> Evaluation:
        """See ExportableInference."""
        from tasks.bert.data import TextData  # with Lightning, which a loaded model does not need

        assert isinstance(data, TextData)
        name, count = evaluated_set(self.config, data)
        order = np.argsort(data.token_sets[name].buffer.lengths[:count], kind="stable")
        rows = data.splits[name].select(order)
        texts: list[Any] = [list(rows[column]) for column in data.columns]
        labels = torch.from_numpy(data.token_sets[name].labels[:count][order])

        def score(outputs: Tensor) -> float:
            if self.spec.label_names is not None:
                return float((outputs.argmax(1) == labels).double().mean())
            return float(torch.corrcoef(torch.stack([outputs[:, 0].double(), labels.double()]))[0, 1])

        return Evaluation(list(zip(*texts, strict=True)) if self.is_pair else texts[0], self.metric, score, True, ())

    def predict(self, arguments: PredictArguments, run_dir: Path) -> Path | None:
        """See Inference. Rank 0 reads the input and the others receive its texts; each computes its batches."""
        csv_format, names = csv_format_of(arguments, self.spec.csv_format), result_names(self.spec.label_names)
        read, output = None, None
        if is_first_rank():
            output = output_path(arguments, run_dir, csv_format)
            read = read_input(arguments, csv_format, self.spec.columns, names)
        texts = broadcast_json([] if read is None else [row for row in read.texts if row is not None])
        outputs = self._outputs_of_all(texts)
        if read is not None and output is not None:
            results = result_rows(outputs, read.texts, self.spec.label_names)
            write_rows(read, names, results, output, Path(arguments.input).expanduser())
            report(read, arguments, output)
        return output

    def _outputs_of_all(self, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities (N, C) of classes, or scores (N, 1), of all texts on every rank, float64."""
        starts = range(0, len(texts), ROWS_PER_CHUNK)
        buffer = TokenBuffer.from_chunks([self.encode(texts[start : start + ROWS_PER_CHUNK]) for start in starts])
        pad_id: Any = self.tokenizer.pad_token_id
        labels = np.zeros(len(texts), dtype=np.int64)
        tokens = TokenSet(buffer, labels, pad_id, self.spec.max_length, self.pad_to_multiple_of)
        is_distributed = torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if is_distributed else 0
        world_size = torch.distributed.get_world_size() if is_distributed else 1
        # Each row is filled by one rank and is 0 on the others, so the sum over ranks is the row itself.
        num_outputs = len(self.spec.label_names or [None])
        outputs = torch.zeros(len(texts), num_outputs, device=self.device, dtype=torch.float64)
        for micro in predict_batches(buffer.lengths, self.config.batch.eval_size, rank, world_size):
            batch = tokens.gather(micro.indices, micro.num_valid, 0).to(self.device)
            values = self.probabilities(self.forward(self.network_inputs(batch)))
            outputs[batch.indices[: micro.num_valid]] = values[: micro.num_valid]
        if rank == 0:
            self._report_shares(buffer)
        return all_reduce_sum(outputs).cpu().numpy().round(DIGITS)

    def _report_shares(self, buffer: TokenBuffer) -> None:
        """Print how much of the texts the model does not see, and the same of the training texts."""
        spec = self.spec
        if buffer.num_truncated:
            cut = f"{buffer.truncated_share:.1%} of the texts are cut to {spec.max_length} tokens"
            print(f"note: {cut} (in training {spec.truncated_share:.1%})", file=sys.stderr)
        if buffer.num_unknown:
            unknown = f"{buffer.unknown_share:.1%} of the tokens are unknown to the vocabulary"
            print(f"note: {unknown} (in training {spec.unknown_share:.1%})", file=sys.stderr)

    def _texts(self, number: int, value: Any) -> list[str]:
        if isinstance(value, Mapping):
            texts = self.spec.columns.texts(value)
        else:
            texts = [value] if isinstance(value, str) or not isinstance(value, Sequence) else list(value)
        if len(texts) != 1 + self.is_pair:
            expected = "a pair of texts" if self.is_pair else "one text"
            raise BadInput(number, f"{expected} is expected")
        problem = next((problem for text in texts if (problem := text_problem(text))), None)
        if problem is not None:
            raise BadInput(number, problem)
        return texts


def load_network(network: TextNetwork, run_dir: Path) -> None:
    """Fill a network with a run's final weights. Raises: UserError: there are none, or they do not fit."""
    file = run_dir / MODEL_FILE
    if not file.exists():
        raise UserError(
            f"run={run_dir}: no {MODEL_FILE} yet", "the run is not finished; the command that started it resumes it"
        )
    try:
        weights = load_file(file)
        own = {name: tensor for name, tensor in weights.items() if name.startswith(NAMES)}
        missing, unexpected = network.load_state_dict(own, strict=False)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise UserError(f"{file}: damaged: {' '.join(str(error).split())[:160]}") from error
    # Of weights that share memory only one name is in the file.
    tied = {name for name, tensor in network.state_dict().items() if _shares_memory(name, tensor, network, own)}
    lacking = sorted(set(missing) - tied - set(TARGETS))
    if lacking or unexpected:
        raise UserError(f"{file}: its weights are not those of the run's network: {[*lacking, *unexpected][0]}")


def _shares_memory(name: str, tensor: Tensor, network: nn.Module, loaded: Mapping[str, Tensor]) -> bool:
    others = (other for other_name, other in network.state_dict().items() if other_name in loaded)
    return name not in loaded and any(tensor.data_ptr() == other.data_ptr() for other in others)

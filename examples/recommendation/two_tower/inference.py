"""The trained item tower on raw texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedTokenizerFast

from trainer.errors import UserError
from trainer.inference import BadInput, ExampleInputs, Inference, load_weights

from .config import TwoTowerRun
from .data import read_spec
from .network import padded, token_ids, without_pooler


class ItemInference(Inference):
    """An input is the text of an item, its result a vector of length 1."""

    metric = "mrr"

    def __init__(
        self, config: TwoTowerRun, network: nn.Module, device: torch.device, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__(config, network, device)
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, config: TwoTowerRun, run_dir: Path, device: torch.device) -> Self:
        """See Inference."""
        tokenizer, network = read_spec(run_dir)
        encoder = AutoModel.from_config(CONFIG_MAPPING[str(network["model_type"])].from_dict(network))
        tower = without_pooler(encoder)
        load_weights(tower, run_dir, "model.items.")
        return cls(config, tower, device, tokenizer)

    def preprocess(self, inputs: Sequence[Any]) -> Mapping[str, Tensor]:
        """See Inference."""
        for number, text in enumerate(inputs):
            if not isinstance(text, str):
                raise BadInput(number, "not a text")
        rows = token_ids(self.tokenizer, inputs, self.config.data.max_length)
        pad_id = self.tokenizer.pad_token_id
        assert isinstance(pad_id, int)
        ids, mask = padded(rows, pad_id)
        return {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}

    def postprocess(self, outputs: Tensor) -> list[dict[str, Any]]:
        """See Inference."""
        return [{"vector": row} for row in outputs.tolist()]

    def example_inputs(self) -> ExampleInputs:
        """See Inference."""
        dynamic = {0: "batch", 1: "width"}
        tensors = self.preprocess(["a text", "another text of an item"])
        return ExampleInputs(tensors, {"input_ids": dynamic, "attention_mask": dynamic})

    def predict(self, arguments: Any, run_dir: Path) -> Path | None:
        """See Inference."""
        raise UserError(f"run={run_dir}: task=two_tower has no verb predict", "use python -m examples.recommendation")

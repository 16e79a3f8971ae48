"""A run's network through transformers alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification


def by_hand(run_dir: Path, texts: Sequence[str]) -> Tensor:
    """Logits (B, C) of texts that are cut to 40 tokens."""
    spec = json.loads((run_dir / "inputs.json").read_text())
    model = BertForSequenceClassification(BertConfig.from_dict(spec["network"])).eval()
    weights = load_file(run_dir / "model.safetensors")
    model.load_state_dict({n.removeprefix("model."): w for n, w in weights.items() if n.startswith("model.")})
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "tokenizer")
    inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=40, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits

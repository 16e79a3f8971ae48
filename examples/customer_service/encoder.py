"""The fine-tuned encoder: probabilities of intents and a sentence embedding from one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from trainer import UserError

BATCH_SIZE = 64


@dataclass(frozen=True)
class Encoded:
    """N questions. probabilities: (N, C) float32. embeddings: (N, H) float32, of length 1."""

    probabilities: np.ndarray
    embeddings: np.ndarray


class Encoder:
    """A run's `hf/` folder, on the CPU.

    It is read by transformers because `trainer.load` gives logits only, and the embedding is the mean of the hidden
    states behind them.

    run_dir: of the run. name: its last part, by which stored embeddings are recognised. labels: intents in the order of
    the probabilities. width: H, of an embedding.
    """

    def __init__(self, run_dir: Path) -> None:
        """Raises: UserError: the run has no `hf/`."""
        folder = run_dir / "hf"
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: is missing; the run is not finished, or model.pooling=mean, which has no hf/")
        disable_progress_bar()
        self.run_dir, self.name = run_dir, run_dir.name
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.network = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
        # A tokenizer raises "Already borrowed" if one thread sets its padding while another one uses it.
        self.tokenizing = threading.Lock()
        self.width: int = self.network.config.hidden_size
        names: dict[int, str] = self.network.config.id2label
        self.labels = [names[number] for number in range(len(names))]

    @torch.inference_mode()
    def encode(self, questions: Sequence[str]) -> Encoded:
        """Probabilities and embeddings of at least one question, in their order."""
        order = np.argsort([len(question) for question in questions], kind="stable")
        probabilities = np.empty((len(questions), len(self.labels)), np.float32)
        embeddings = np.empty((len(questions), self.width), np.float32)
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            texts = [questions[row] for row in rows]
            with self.tokenizing:
                inputs = self.tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
            outputs = self.network(**inputs, output_hidden_states=True)
            mask = inputs["attention_mask"][..., None].float()
            means = (outputs.hidden_states[-1] * mask).sum(1) / mask.sum(1)
            probabilities[rows] = outputs.logits.softmax(-1).numpy()
            embeddings[rows] = torch.nn.functional.normalize(means, dim=-1).numpy()
        return Encoded(probabilities, embeddings)

"""What a task says about a trained model, apart from how it was trained.

An `Inference` is built from a run directory alone: configuration, weights and what the run has kept of its data (label
names, normalisation, tokenizer). It never reads training data. The verb `predict` uses it, and what applies, exports or
serves a model builds on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.run.files import MODEL_FILE


@dataclass(frozen=True)
class ExampleInputs:
    """Inputs to trace a network with.

    tensors: by the name of the network's argument, with at least two rows. dynamic: for each, its dimensions that vary,
    as {axis: name of the dimension}; axis 0 is "batch".
    """

    tensors: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]


class Inference(ABC):
    """A trained model on raw inputs.

    network: in evaluation mode on `device`; takes the tensors of `preprocess` by name and returns one tensor.
    metric: the evaluation metric, without prefix, that says whether a changed network is still as good.
    """

    metric: str
    network: nn.Module
    device: torch.device

    @classmethod
    @abstractmethod
    def load(cls, config: Config[Any, Any, Any], run_dir: Path, device: torch.device) -> Self:
        """The model of a finished run. Raises: UserError: the run has no weights, or a file of it is damaged."""

    @abstractmethod
    def preprocess(self, inputs: Sequence[Any]) -> Mapping[str, Tensor]:
        """Raw inputs as the network's arguments, on `device`; axis 0 is the input. Raises: UserError: a bad input."""

    @abstractmethod
    def postprocess(self, outputs: Tensor) -> list[dict[str, Any]]:
        """One JSON-ready result for each row of the network's output."""

    @abstractmethod
    def example_inputs(self) -> ExampleInputs:
        """Inputs to trace or export the network with."""

    @abstractmethod
    def predict(self, arguments: Any, run_dir: Path) -> None:
        """The verb `predict`. Called on every rank; rank 0 writes the result.

        Args: arguments: of TaskSpec.predict_arguments. Raises: UserError: the input cannot be read.
        """

    @torch.inference_mode()
    def __call__(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Results for raw inputs, in their order."""
        return self.postprocess(self.network(**self.preprocess(inputs)))


def load_weights(network: nn.Module, run_dir: Path, prefix: str) -> None:
    """Give a network the run's final weights, in the type in which they are stored.

    Args: prefix: of the network's names in model.safetensors, as "model.".
    Raises: UserError: the run has no weights yet, or the file is damaged or of another network.
    """
    path = run_dir / MODEL_FILE
    if not path.exists():
        unfinished = "the run is not finished; the command that started it resumes it"
        raise UserError(f"run={run_dir}: no {MODEL_FILE} yet", unfinished)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - it is no mapping
                if name.startswith(prefix)
            }
        network.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"run={run_dir}: {MODEL_FILE} is damaged or does not fit the configuration", reason) from error

"""What a task says about a trained model, apart from how it was trained.

An `Inference` is built from a run directory alone: configuration, weights and what the run has kept of its data (label
names, normalisation, tokenizer). It never reads training data, and is what `trainer.load` returns. The verb `predict`
uses it, and what applies, exports or serves a model builds on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.run.files import MODEL_FILE

if TYPE_CHECKING:
    from trainer.data.module import DataModule


NUM_PROBES = 20


@dataclass(frozen=True)
class ExampleInputs:
    """Inputs to trace a network with.

    tensors: by the name of the network's argument, with at least two rows. dynamic: for each, its dimensions that vary,
    as {axis: name of the dimension}; axis 0 is "batch".
    """

    tensors: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str]]


class BadInput(UserError):
    """One of the inputs cannot be used. Args: number: its position, from 0. reason: what is wrong with it."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"input {number}: {reason}")
        self.number, self.reason = number, reason


class Inference(ABC):
    """A trained model on raw inputs: `model(inputs)` gives results, `model.outputs(inputs)` the tensor they come from.

    Both compute batch by batch, in the order of the inputs, in the precision of the configuration.

    metric: the evaluation metric, without prefix, that says whether a changed network is still as good.
    network: in evaluation mode on `device`; takes the tensors of `preprocess` by name and returns one tensor.
    """

    metric: str

    def __init__(self, config: Config[Any, Any, Any], network: nn.Module, device: torch.device) -> None:
        """Args: network: with the run's weights, in whatever type they are stored."""
        self.config, self.device = config, device
        dtype = torch.bfloat16 if config.trainer.precision == "bf16-true" else torch.float32
        self.network = network.requires_grad_(False).eval().to(device, dtype)
        if config.performance.channels_last:
            self.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @classmethod
    @abstractmethod
    def load(cls, config: Config[Any, Any, Any], run_dir: Path, device: torch.device) -> Self:
        """The model of a finished run. Raises: UserError: the run has no weights, or a file of it is damaged."""

    @abstractmethod
    def preprocess(self, inputs: Sequence[Any]) -> Mapping[str, Tensor]:
        """Raw inputs as the network's arguments, on `device`; axis 0 is the input. Raises: BadInput."""

    @abstractmethod
    def postprocess(self, outputs: Tensor) -> list[dict[str, Any]]:
        """One JSON-ready result for each row of the network's output."""

    @abstractmethod
    def example_inputs(self) -> ExampleInputs:
        """Inputs to trace or export the network with."""

    @abstractmethod
    def predict(self, arguments: Any, run_dir: Path) -> Path | None:
        """The verb `predict`. Called on every rank; rank 0 writes the result.

        Args: arguments: of TaskSpec.predict_arguments. Returns: the file or folder of the result, on rank 0; None where
            it is only printed. Raises: UserError: the input cannot be read.
        """

    def __call__(self, inputs: Any, batch_size: int | None = None) -> list[Any]:
        """Results for raw inputs, in their order.

        Args: inputs: a list; what is one input by itself is a list of one. batch_size: default batch.eval_size.
        Raises: UserError: an input cannot be used; it is named by its position, from 0.
        """
        return [result for outputs in self._batches(inputs, batch_size) for result in self.postprocess(outputs)]

    def outputs(self, inputs: Any, batch_size: int | None = None) -> Tensor:
        """The network's outputs for raw inputs, such as logits (N, C) float32, on `device`. See __call__."""
        batches = list(self._batches(inputs, batch_size))
        if not batches:
            raise UserError("inputs: there are none")
        return torch.cat(batches)

    @torch.inference_mode()
    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The network's output for what `preprocess` returns, float32, in the arithmetic of the run's evaluation."""
        with self._arithmetic():
            return self.network(**tensors).float()

    def listed(self, inputs: Any) -> Sequence[Any]:
        """Inputs as a list; what is one input by itself becomes a list of one."""
        is_one = isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Iterable)
        return [inputs] if is_one else list(inputs)

    def _batches(self, inputs: Any, batch_size: int | None) -> Iterator[Tensor]:
        values, size = self.listed(inputs), self.config.batch.eval_size if batch_size is None else batch_size
        if size < 1:
            raise UserError(f"batch_size={size}: at least 1")
        for start in range(0, len(values), size):
            try:
                tensors = self.preprocess(values[start : start + size])
            except BadInput as bad:
                raise BadInput(start + bad.number, bad.reason) from bad
            yield self.forward(tensors)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Mixed precision, and the precision of matrix products on a GPU, as the run's evaluation has them."""
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.config.trainer.precision)
        before = torch.get_float32_matmul_precision()
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision(self.config.performance.float32_matmul_precision)
        try:
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Processing:
    """What surrounds an exported network, as plain data; trainer/export/processing.py has the kinds and their fields.

    inputs: how raw inputs become arguments. outputs: how outputs become results. files: text of each file that they
    name.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """The data that an exported network is compared on.

    inputs: raw, in an order in which neighbours have similar lengths. metric: its name. score: the metric of outputs
    (N, C) float32 of `inputs`. is_share: the metric is at most 1, so that a point is 0.01; otherwise a point is 1 % of
    its value. calibration: raw training inputs from which ranges of activations are taken.
    """

    inputs: Sequence[Any]
    metric: str
    score: Callable[[Tensor], float]
    is_share: bool
    calibration: Sequence[Any]


class ExportableInference(Inference):
    """A trained model that can leave the framework, see docs/exporting.md.

    prefix: of the network's names in model.safetensors, such as "model.". can_skip_padding: whether `without_padding`
    gives a network that computes no padding.
    """

    prefix: str
    can_skip_padding: bool = False

    def without_padding(self) -> AbstractContextManager[nn.Module]:
        """The network, which computes the same and, where it can, no padding. Graphs of ONNX are traced from it."""
        return nullcontext(self.network)

    @abstractmethod
    def processing(self) -> Processing:
        """What surrounds the network."""

    @abstractmethod
    def probes(self) -> Sequence[Any]:
        """NUM_PROBES raw inputs that are known without data, from the shortest to the longest."""

    @abstractmethod
    def evaluation(self, data: DataModule) -> Evaluation:
        """The run's evaluation data, the test set where there is one. Args: data: loaded.

        Raises: UserError: it has no evaluation data.
        """


def evaluated_set(config: Config[Any, Any, Any], data: DataModule) -> tuple[str, int]:
    """The set whose metric counts, and how many of its samples trainer.limit_*_batches leaves.

    Raises: UserError: there is none.
    """
    from trainer.data.samplers import num_evaluated

    name = "test" if "test" in data.sets else "val"
    limit = config.trainer.limit_test_batches if name == "test" else config.trainer.limit_val_batches
    count = num_evaluated(len(data.sets[name]), limit, config.batch.eval_size) if name in data.sets else 0
    if not count:
        raise UserError(f"data={config.data.name}: has no validation or test set, or trainer.limit_*_batches=0")
    return name, count


def float32(config: Config[Any, Any, Any]) -> Config[Any, Any, Any]:
    """The configuration of a network that computes in float32, as exported ones are compared with."""
    trainer = replace(config.trainer, precision="32-true")
    performance = replace(config.performance, channels_last=False, float32_matmul_precision="highest")
    return replace(config, trainer=trainer, performance=performance)


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

"""The data module that a task extends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import pytorch_lightning as pl
import torch
from typing_extensions import TypeVar

from trainer.clock import StepClock
from trainer.config.schema import Config
from trainer.data.batch import Gatherable, MicroBatch
from trainer.data.loaders import EvaluationLoader, StepLoader
from trainer.data.samplers import RepeatedSampler, Share, ShuffledSampler, StepSampler, num_evaluated

ConfigT = TypeVar("ConfigT", bound=Config[Any, Any, Any], default=Config)


class DataModule(pl.LightningDataModule, Generic[ConfigT]):
    """Sets, samplers and loaders of one run on one rank.

    A task's subclass implements `load`, which fills `sets`; it may override `train_sampler`. The engine calls `load`
    before it builds the training module, so that numbers of classes and sizes are known there.

    What a trained model needs of its data (label names, normalisation, vocabulary) is the input spec. A run's
    first attempt writes it to the run directory; a run that is resumed, evaluated or applied reads it instead of
    deriving it again.
    """

    config: ConfigT

    def __init__(self, config: ConfigT) -> None:
        super().__init__()
        self.config = config
        self.sets: Mapping[str, Gatherable[MicroBatch]] = {}
        # The engine puts the run's clock in its place.
        self.clock = StepClock()

    @abstractmethod
    def load(self, device: torch.device) -> None:
        """Fill `sets` with "train" and, as far as there are any, "val" and "test".

        Called on every rank; what is built on disk is built by one process under a file lock while the others wait.
        Raises: UserError: the data is not there or not as configured.
        """

    def write_input_spec(self, run_dir: Path) -> None:
        """Write what a trained model needs of this data. Called on rank 0 after `load`."""

    def read_input_spec(self, run_dir: Path) -> None:
        """Take the input spec of a run. Called on every rank; a `load` that follows must keep to it.

        Raises: UserError: the run has none, or it is damaged.
        """

    def fingerprint(self) -> str | None:
        """Hash of the training and evaluation samples, so that a run is not resumed on others; None where unknown."""
        return None

    def describe_samples(self, indices: Sequence[int]) -> list[str]:
        """Training samples in words, one line each, for pages about a step; an empty list without words."""
        return []

    def describe(self) -> Mapping[str, object]:
        """Facts for the run's record: source, sizes, fingerprint, and what was held out."""
        return {name: len(dataset) for name, dataset in self.sets.items()}

    def train_sampler(self) -> StepSampler:
        """The sampler of the training set; a new permutation each epoch unless overridden."""
        return ShuffledSampler(len(self.sets["train"]), self.config.batch.global_size, self.config.seed)

    def train_dataloader(self) -> StepLoader[MicroBatch]:
        """This rank's training batches; see StepLoader."""
        trainer = self._trainer
        micro_size = self.config.batch.fixed_micro_size or self.config.batch.global_size
        sampler = self.train_sampler()
        return StepLoader(
            self.sets["train"],
            RepeatedSampler(sampler) if self.config.trainer.overfit_batches else sampler,
            Share(trainer.global_rank, trainer.world_size),
            micro_size,
            trainer.strategy.root_device,
            self.config.performance.prefetch_batches,
            self._position,
            self.clock,
        )

    def val_dataloader(self) -> EvaluationLoader[MicroBatch] | list[object]:
        """This rank's validation batches; an empty list where there is no validation set."""
        return self.evaluation_loader("val") if "val" in self.sets else []

    def test_dataloader(self) -> EvaluationLoader[MicroBatch] | list[object]:
        """This rank's test batches; an empty list where there is no test set."""
        return self.evaluation_loader("test") if "test" in self.sets else []

    def evaluation_loader(self, name: str) -> EvaluationLoader[MicroBatch]:
        """This rank's part of a set, in order, as far as trainer.limit_val_batches or limit_test_batches allows."""
        trainer, options = self._trainer, self.config.trainer
        limit = options.limit_val_batches if name == "val" else options.limit_test_batches
        return EvaluationLoader(
            self.sets[name],
            Share(trainer.global_rank, trainer.world_size),
            self.config.batch.eval_size,
            trainer.strategy.root_device,
            self.config.performance.prefetch_batches,
            num_evaluated(len(self.sets[name]), limit, self.config.batch.eval_size),
        )

    @property
    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise RuntimeError("loaders exist only inside a Lightning Trainer")
        return self.trainer

    def _position(self) -> tuple[int, int]:
        """(epoch, steps done in it). One Lightning batch is one step, so its own progress is the position."""
        fit_loop = self._trainer.fit_loop
        batches = fit_loop.epoch_loop.batch_progress
        # After the last step of an epoch the epoch's number is increased before the count of its steps is reset.
        done = batches.current.completed if fit_loop.restarting else 0
        epochs: Any = fit_loop.epoch_progress.current
        return epochs.processed, done

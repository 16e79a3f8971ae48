"""Lightning's loop over the batches of an epoch, with less around a step.

For every hook of every callback, also where nobody overrides it, Lightning's own enters a profiler's context, formats a
line for its debug log and sets an attribute of the module: 85 contexts a step (docs/performance.md). Here the
overridden hooks are called. The progress that is saved and restored, evaluations and stops remain Lightning's. What a
step logs is what it returns: `self.log` is for evaluations.
"""

from __future__ import annotations

from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.profilers import PassThroughProfiler

from trainer.module import TrainingModule
from trainer.network_strategy import Hook, overridden


class StepLoop(_TrainingEpochLoop):
    """Steps of a TrainingModule, from a loader of known length whose batches are on the device already."""

    starts: list[Hook]
    ends: list[Hook]
    profiled: bool

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Lightning's hook, once an epoch: find the hooks that are called in each step."""
        super().on_run_start(data_fetcher)
        callbacks = self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        self.starts = overridden(callbacks, "on_train_batch_start")
        self.ends = overridden(callbacks, "on_train_batch_end")
        self.profiled = not isinstance(self.trainer.profiler, PassThroughProfiler)  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def module(self) -> TrainingModule:
        """The module in training."""
        module = self.trainer.lightning_module
        assert isinstance(module, TrainingModule)
        return module

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Lightning's hook: one step. The first after a restart, which may be none, and profiled ones are its own."""
        if self.restarting and not self.batch_progress.current.ready:
            # At the begin of an epoch there is no evaluation of an earlier step, which Lightning would count.
            self.restarting = False
        if self.restarting or self.profiled:
            super().advance(data_fetcher)
            return
        if self.val_loop.restarting:
            self.val_loop.restarting = False
        trainer, module, progress = self.trainer, self.module, self.batch_progress
        batch, *_ = next(data_fetcher)
        number = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        progress.increment_ready()
        for hook in self.starts:
            hook(trainer, module, batch, number)
        module.on_train_batch_start(batch, number)
        progress.increment_started()
        # Lightning counts a step where the last network's optimizer takes one.
        self.manual_optimization.on_run_start()
        outputs = trainer.strategy.training_step(batch, number)
        progress.increment_processed()
        for hook in self.ends:
            hook(trainer, module, outputs, batch, number)
        module.on_train_batch_end(outputs, batch, number)  # pyright: ignore[reportArgumentType]
        progress.increment_completed()

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Lightning's hook: evaluate where it is due, or stop."""
        if self._skip_next_val or self.trainer.should_stop or self._should_check_val_fx(data_fetcher):
            with self.module.clock.within("evaluation"):
                super().on_advance_end(data_fetcher)
        else:
            self._batches_that_stepped += 1

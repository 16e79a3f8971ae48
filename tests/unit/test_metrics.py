"""Throughput and gradient norms against known numbers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import SPIRALS_WORDS
from pytorch_lightning.plugins import MixedPrecision

from trainer.clock import StepClock
from trainer.data.batch import StepBatch
from trainer.engine.build import build_data_and_module, build_trainer
from trainer.observe.device_state import device_state
from trainer.observe.flops import Peaks
from trainer.observe.metrics import TrainingMetrics
from trainer.verbs.prepare import Options, prepare

NUM_SAMPLES, STEP_S, FLOPS, PEAK = 32, 0.25, 5e12, 989e12


class Recorder:
    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append(metrics)

    def save(self) -> None:
        pass


def test_throughput_is_that_of_a_known_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of a quarter of a second, each of 32 samples and 5 TFLOP, as if two H100 had done them."""
    now = [100.0]
    for name in ("max_memory_allocated", "memory_allocated", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: 2**30)
    plan = prepare(SPIRALS_WORDS, Options())
    module = plan.task.build_module(plan.config, plan.task.build_data(plan.config))
    module._device = torch.device("cuda", 0)
    module.last_lrs = {"model": 0.1}
    recorder = Recorder()
    trainer: Any = SimpleNamespace(loggers=[recorder], world_size=2, current_epoch=0, global_step=0, datamodule=None)
    trainer.strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    metrics = TrainingMetrics(2, "bf16-mixed", StepClock(lambda: int(now[0] * 1e9)))
    metrics.peaks = Peaks(datasheet=PEAK, measured=PEAK / 2)
    metrics.on_train_start(trainer, module)
    batch: Any = StepBatch([], NUM_SAMPLES)
    for step in range(1, 5):
        metrics.on_train_batch_start(trainer, module, batch, step - 1)
        now[0] += STEP_S
        trainer.global_step = step
        sums = {"loss": torch.tensor(NUM_SAMPLES * 0.5), "num_flops": torch.tensor(FLOPS)}
        metrics.on_train_batch_end(trainer, module, sums, batch, step - 1)
    assert len(recorder.lines) == 2
    for line in recorder.lines:
        assert line["train/loss"] == pytest.approx(0.5)
        assert line["perf/step_time_s"] == pytest.approx(STEP_S)
        assert line["perf/samples_per_s"] == pytest.approx(NUM_SAMPLES / STEP_S)
        assert line["perf/flops_per_s"] == pytest.approx(FLOPS / STEP_S)
        assert line["perf/mfu"] == pytest.approx(FLOPS / STEP_S / (2 * PEAK))
        assert line["perf/mfu_measured"] == pytest.approx(FLOPS / STEP_S / PEAK)


def test_the_driver_is_asked_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's units are percent, milliwatts, degrees and MHz."""
    answers = {"utilization": 87, "power_draw": 412_000, "temperature": 61, "clock_rate": 1980}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, answer=answer: answer)
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("trainer.observe.device_state.find_spec", lambda name: None)
    assert device_state(gpu) == {}
    monkeypatch.setattr("trainer.observe.device_state.find_spec", lambda name: object())
    state = {"utilization": 0.87, "power_w": 412.0, "temperature_c": 61.0, "clock_mhz": 1980.0}
    assert device_state(gpu) == {f"sys/gpu_{name}": value for name, value in state.items()}


def gradient_norm(folder: Path, fused: bool, scaler: torch.amp.GradScaler | None) -> float:
    """The norm that a run of two steps logs; with a scaler in 16-mixed, which the configuration allows on GPUs only."""
    words = ["optimizer=adam", f"optimizer.fused={fused}", "trainer.max_steps=2", "trainer.log_every_n_steps=1"]
    plan = prepare([*SPIRALS_WORDS, *words, "trainer.limit_val_batches=0", "model.dropout=0.0"], Options())
    data, module = build_data_and_module(plan.config, plan.task, plan.world)
    trainer = build_trainer(plan.config, plan.world, folder, [], [])
    if scaler is not None:
        trainer.strategy._precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer.fit(module, datamodule=data)
    return float(module.grad_norms["model"])


def test_hooks_around_a_step_are_called_where_a_callback_has_them(tmp_path: Path) -> None:
    called: list[str] = []

    class Counting(pl.Callback):
        def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
            called.append("before backward")

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            called.append("after backward")

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            called.append("before the update")

    plan = prepare([*SPIRALS_WORDS, "trainer.max_steps=2", "trainer.limit_val_batches=0"], Options())
    data, module = build_data_and_module(plan.config, plan.task, plan.world)
    build_trainer(plan.config, plan.world, tmp_path, [Counting()], []).fit(module, datamodule=data)
    assert called == ["before backward", "after backward", "before the update"] * 2


@pytest.mark.parametrize("fused", [False, True])
def test_the_logged_norm_has_no_loss_scale(fused: bool, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    assert gradient_norm(tmp_path, fused, scaler) == pytest.approx(gradient_norm(tmp_path, fused, None), rel=0.02)
    assert scaler.get_scale() == 2.0**10

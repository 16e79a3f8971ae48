"""Schedules against their formulas, and the combined optimizer against its parts."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from trainer.config.groups import DecayConfig, MuonConfig
from trainer.config.schema import SchedulerConfig
from trainer.optim.optimizers import MuonWithAdamW, build_scheduler


def rates(config: SchedulerConfig, total_steps: int, peak: float = 0.5) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = build_scheduler(optimizer, config, total_steps)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant_with_warmup() -> None:
    seen = rates(SchedulerConfig(name="constant", warmup_fraction=0.2), 10)
    assert seen == pytest.approx([0.5 / 3, 1.0 / 3] + [0.5] * 8)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_decay_ends_at_its_final_fraction(name: str) -> None:
    seen = rates(DecayConfig(name=name, warmup_fraction=0.1, final_fraction=0.1), 100)
    for step in range(10, 100):
        done = (step - 10) / 90
        fall = 1 - done if name == "linear" else (1 + math.cos(math.pi * done)) / 2
        assert seen[step] == pytest.approx(0.5 * (0.1 + 0.9 * fall))


def test_one_cycle_rises_and_falls() -> None:
    seen = rates(SchedulerConfig(name="one_cycle", warmup_fraction=0.3), 100)
    assert seen.index(max(seen)) in (29, 30)
    assert seen[0] == pytest.approx(0.5 / 25)
    assert max(seen) == pytest.approx(0.5, rel=1e-2)
    assert seen[-1] < 1e-4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))


def losses(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int) -> list[float]:
    torch.manual_seed(1)
    seen = []
    for _ in range(steps):
        loss = model(torch.randn(4, 1, 4, 4)).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen.append(loss.item())
    return seen


def test_muon_with_adamw_is_its_two_parts() -> None:
    config = MuonConfig(name="muon", lr=0.02, weight_decay=0.01, momentum=0.9, nesterov=True, adamw_lr=0.001)
    ours, reference = network(), network()
    combined = MuonWithAdamW([{"params": list(ours.parameters())}], config)
    matrices = [p for p in reference.parameters() if p.ndim == 2]
    others = [p for p in reference.parameters() if p.ndim != 2]
    parts = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, momentum=0.9, nesterov=True),
        torch.optim.AdamW(others, lr=0.001, weight_decay=0.01),
    ]
    assert losses(ours, [combined], 5) == losses(reference, parts, 5)


def test_muon_with_adamw_goes_on_from_its_state() -> None:
    config = MuonConfig(name="muon", lr=0.02, weight_decay=0.0, momentum=0.9, nesterov=True, adamw_lr=0.001)

    def make(model: nn.Module) -> MuonWithAdamW:
        return MuonWithAdamW([{"params": list(model.parameters())}], config)

    model = network()
    optimizer = make(model)
    losses(model, [optimizer], 3)
    copy = network()
    copy.load_state_dict(model.state_dict())
    resumed = make(copy)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    assert losses(model, [optimizer], 3) == losses(copy, [resumed], 3)

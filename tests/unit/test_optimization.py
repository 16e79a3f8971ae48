"""Schedules against torch's and their formulas, Muon against an independent computation."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from trainer.config.groups import DecayConfig, MuonConfig
from trainer.config.schema import SchedulerConfig
from trainer.optim.hidden import find_outer_layers, hidden_weights
from trainer.optim.optimizers import MuonWithAdamW, build_scheduler

MUON = MuonConfig(name="muon", lr=0.02, weight_decay=0.01, momentum=0.9, nesterov=True, adamw_lr=0.001)


def learning_rates(config: SchedulerConfig, total_steps: int, peak: float = 0.5) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = build_scheduler(optimizer, config, total_steps)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant_with_warmup() -> None:
    seen = learning_rates(SchedulerConfig(name="constant", warmup_fraction=0.2), 10)
    assert seen == pytest.approx([0.5 / 3, 1.0 / 3] + [0.5] * 8)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_decay_ends_at_its_final_fraction(name: str) -> None:
    seen = learning_rates(DecayConfig(name=name, warmup_fraction=0.1, final_fraction=0.1), 100)
    for step in range(10, 100):
        done = (step - 10) / 90
        fall = 1 - done if name == "linear" else (1 + math.cos(math.pi * done)) / 2
        assert seen[step] == pytest.approx(0.5 * (0.1 + 0.9 * fall))


@pytest.mark.parametrize(("fraction", "total_steps"), [(0.3, 100), (0.3, 47), (0.99, 10), (0.5, 4)])
def test_one_cycle_is_that_of_torch(fraction: float, total_steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = OneCycleLR(optimizer, 0.5, total_steps=total_steps, pct_start=fraction, cycle_momentum=False)
    seen = learning_rates(SchedulerConfig(name="one_cycle", warmup_fraction=fraction), total_steps)
    for step, value in enumerate(seen):
        assert value == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < total_steps - 1:
            reference.step()


@pytest.mark.parametrize(("fraction", "total_steps"), [(0.1, 10), (0.01, 10), (0.5, 2), (0.3, 1)])
def test_one_cycle_with_a_warmup_of_one_step_starts_at_the_peak(fraction: float, total_steps: int) -> None:
    """torch divides by zero where fraction * total_steps is 1."""
    seen = learning_rates(SchedulerConfig(name="one_cycle", warmup_fraction=fraction), total_steps)
    assert seen[0] == 0.5
    assert seen == sorted(seen, reverse=True)
    assert total_steps == 1 or seen[-1] == pytest.approx(0.5 / 25 / 10_000)


# ---- Muon


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 3, bias=False), nn.Flatten(), nn.Linear(12, 6), nn.Linear(6, 2)]
    return nn.Sequential(*layers)


def muon_for(model: nn.Module) -> MuonWithAdamW:
    return MuonWithAdamW([{"params": list(model.parameters())}], MUON, hidden_weights(model, find_outer_layers(model)))


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    torch.manual_seed(1)
    seen = []
    for _ in range(steps):
        loss = model(torch.randn(4, 1, 4, 4)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    return seen


def orthogonalised(gradient: Tensor) -> Tensor:
    """The quintic Newton-Schulz iteration of Jordan 2024, on singular values: X = U S V', p(S) five times."""
    matrix = gradient.double().flatten(1)
    u, s, vh = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u @ torch.diag(s) @ vh).view_as(gradient)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_step_of_muon_is_the_published_one(memory_format: torch.memory_format) -> None:
    model = network()
    model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    hidden = [model.get_parameter("1.weight"), model.get_parameter("3.weight")]
    before = [weight.detach().clone() for weight in hidden]
    gradients = [torch.randn(weight.shape) for weight in hidden]
    for weight, gradient in zip(hidden, gradients, strict=True):
        weight.grad = gradient
    muon_for(model).step()
    for weight, old, gradient in zip(hidden, before, gradients, strict=True):
        # With Nesterov's momentum the first update is a multiple of the gradient, and its scale does not matter.
        rows, columns = len(weight), weight.numel() // len(weight)
        expected = -0.02 * max(1, rows / columns) ** 0.5 * orthogonalised(gradient)
        update = weight.detach().double() - old.double() * (1 - 0.02 * 0.01)
        # torch iterates in bfloat16, which has eight bits.
        assert (update - expected).norm() < 0.05 * expected.norm()


def test_outer_layers_biases_and_embeddings_go_to_adamw() -> None:
    model = network()
    optimizer = muon_for(model)
    outer = [model.get_parameter(name) for name in ("0.weight", "0.bias", "3.bias", "4.weight", "4.bias")]
    theirs = [weight.detach().clone().requires_grad_() for weight in outer]
    reference = torch.optim.AdamW(theirs, lr=0.001, weight_decay=0.01)
    for ours, copy in zip(outer, theirs, strict=True):
        ours.grad = copy.grad = torch.randn(ours.shape)
    optimizer.step()
    reference.step()
    for ours, copy in zip(outer, theirs, strict=True):
        assert torch.equal(ours, copy)

    text = nn.ModuleDict({"words": nn.Embedding(9, 4), "positions": nn.Embedding(5, 4),
                          "layer": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 9)})  # fmt: skip
    layer, head = text["layer"], text["head"]
    assert isinstance(layer, nn.Linear) and isinstance(head, nn.Linear)
    assert hidden_weights(text, find_outer_layers(text)) == {layer.weight}
    assert hidden_weights(text, [head]) == {layer.weight}


def test_a_groups_own_learning_rate_scales_both_parts() -> None:
    model = network()
    groups = [{"params": list(model.parameters()), "lr": 0.01}]
    optimizer = MuonWithAdamW(groups, MUON, hidden_weights(model, find_outer_layers(model)))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.0005])


def test_muon_resumes_from_its_state() -> None:
    model = network()
    optimizer = muon_for(model)
    losses(model, optimizer, 3)
    copy = network()
    copy.load_state_dict(model.state_dict())
    resumed = muon_for(copy)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    assert losses(model, optimizer, 3) == losses(copy, resumed, 3)


def test_muon_resumes_in_another_memory_format() -> None:
    model = network()
    optimizer = muon_for(model)
    losses(model, optimizer, 3)
    copy = network().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    copy.load_state_dict(model.state_dict())
    resumed = muon_for(copy)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    assert losses(model, optimizer, 3) == pytest.approx(losses(copy, resumed, 3), rel=1e-2)

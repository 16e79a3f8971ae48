"""performance.compile compiles networks of any class."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SPIRALS_WORDS
from torch import Tensor, nn

from trainer.engine.build import prepare_networks
from trainer.verbs.prepare import Options, prepare


class Wrapped(nn.Module):
    """A network whose class is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.ReLU())

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)


@pytest.mark.parametrize("network", [Wrapped(), nn.Sequential(nn.Linear(2, 4), nn.ReLU())], ids=["own", "torch's"])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_network_is_compiled(network: nn.Module, compiled: bool) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    names, points = set(network.state_dict()), torch.ones(3, 2)
    expected = network(points)
    plan = prepare(SPIRALS_WORDS, Options())
    config = plan.config
    config = replace(config, performance=replace(config.performance, compile=compiled))
    previous = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend(count)
    try:
        prepare_networks(config, SimpleNamespace(networks=lambda: {"network": network}), plan.world)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(network(points), expected)
    finally:
        torch.compiler.set_default_backend(previous)
    assert len(graphs) == int(compiled)
    assert set(network.state_dict()) == names

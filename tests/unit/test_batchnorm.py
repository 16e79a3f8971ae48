"""BatchNorm over the global batch on CPU ranks, against torch's BatchNorm over the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from trainer.strategies.batchnorm import GlobalBatchNorm, synchronise_batchnorm

CHANNELS = 3


def synchronised(network: nn.Module) -> nn.Module:
    synchronise_batchnorm(network, "cpu")
    return network


def network(momentum: float | None = 0.1) -> nn.Sequential:
    """A convolution between two BatchNorm layers, so that gradients pass through one."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.BatchNorm2d(CHANNELS, momentum=momentum), nn.Conv2d(CHANNELS, CHANNELS, 3))
    layers.append(nn.BatchNorm2d(CHANNELS, momentum=momentum))
    nn.init.uniform_(layers[0].weight)  # pyright: ignore[reportArgumentType]
    return layers


def images() -> Tensor:
    """(7, 3, 6, 6): an odd number of rows, far from zero where a one-pass variance would lose digits."""
    return torch.randn(7, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(1)) + 50.0


def two_steps(model: nn.Module, parts: list[Tensor]) -> dict[str, Tensor]:
    """Outputs of two passes, gradients of parameters and of the last input, and the state afterwards."""
    for part in parts:
        part = part.clone().requires_grad_()
        output = model(part)
        output.square().mul(torch.linspace(-1, 1, 16).view(4, 4)).sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {f"{name}.grad": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return state | gradients | {"output": output.detach(), "input.grad": part.grad}  # pyright: ignore


def on_rank(rank: int, rows: list[int], momentum: float | None, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(rows))
    model = synchronised(network(momentum))
    parts = [whole.split(rows)[rank] for whole in (images(), images().flip(0))]
    torch.save(two_steps(model, parts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("rows", "momentum"), [([4, 3], 0.1), ([7, 0], None)])
def test_ranks_equal_one_batch(tmp_path: Path, rows: list[int], momentum: float | None) -> None:
    mp.spawn(on_rank, args=(rows, momentum, str(tmp_path)), nprocs=len(rows))  # pyright: ignore[reportPrivateImportUsage]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(rows))]
    expected = two_steps(network(momentum).double(), [images().double(), images().flip(0).double()])
    assert ranks[0].keys() == expected.keys()
    for name, value in expected.items():
        if name in ("output", "input.grad"):
            actual = torch.cat([rank[name] for rank in ranks])
        elif name.endswith(".grad"):
            actual = torch.stack([rank[name] for rank in ranks]).sum(0)
        else:
            torch.testing.assert_close(ranks[0][name], ranks[1][name], rtol=0, atol=0)
            actual = ranks[0][name]
        torch.testing.assert_close(actual.to(value.dtype), value, rtol=1e-4, atol=1e-4, msg=name)


def test_conversion_keeps_keys_and_values() -> None:
    plain, converted = network(), synchronised(network())
    assert isinstance(converted[0], GlobalBatchNorm)  # pyright: ignore[reportIndexIssue]
    assert list(plain.state_dict()) == list(converted.state_dict())
    for before, after in zip(plain.state_dict().values(), converted.state_dict().values(), strict=True):
        assert torch.equal(before, after)


def test_gpus_get_torchs_own_layer() -> None:
    converted = network()
    synchronise_batchnorm(converted, "cuda")
    assert type(converted[0]) is nn.SyncBatchNorm
    # All that torch's forward reads of a layer that its own conversion has made.
    torchs = nn.SyncBatchNorm.convert_sync_batchnorm(network())[0]  # pyright: ignore[reportIndexIssue]
    assert vars(torchs).keys() <= vars(converted[0]).keys()
    assert converted[0].process_group is None


def test_one_process_computes_what_batchnorm_does() -> None:
    plain, converted = network(), synchronised(network())
    for model in (plain, converted):
        model.train()
    assert torch.equal(plain(images()), converted(images()))
    assert torch.equal(plain.eval()(images()), converted.eval()(images()))


def test_bf16_keeps_statistics_in_single_precision(tmp_path: Path) -> None:
    mp.spawn(_bf16_on_rank, args=(str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]


def _bf16_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    layer = nn.BatchNorm2d(CHANNELS)
    synchronise_batchnorm(layer, "cpu")
    output = layer(images().split([4, 3])[rank].bfloat16())
    assert output.dtype == torch.bfloat16
    expected = nn.BatchNorm2d(CHANNELS)
    expected(images().bfloat16().float())
    torch.testing.assert_close(layer.running_var, expected.running_var, rtol=1e-5, atol=1e-5)
    dist.destroy_process_group()

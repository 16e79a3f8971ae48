"""Frechet and kernel distance against torchmetrics and closed forms, the feature table on several ranks, the log."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from tasks.dcgan.score_log import append_score, read_scores
from tasks.dcgan.scores import FeatureTable, frechet_distance, kernel_distance


def features(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mixing + seed


def test_frechet_distance_is_torchmetrics() -> None:
    real, fake = features(300, 12, 0), features(200, 12, 1)
    expected = _compute_fid(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov())
    torch.testing.assert_close(frechet_distance(real, fake), expected, rtol=1e-8, atol=1e-8)


def test_frechet_distance_of_known_gaussians() -> None:
    """With diagonal covariances it is |m1 - m2|^2 plus the squared differences of standard deviations."""
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64) * 0.75**0.5
    fake = corners * torch.tensor([3.0, 1.0]) + torch.tensor([0.0, 2.0])  # corners have unit variance
    torch.testing.assert_close(frechet_distance(corners, fake), torch.tensor(8.0, dtype=torch.float64))


def test_frechet_distance_of_a_set_and_itself_is_zero_with_fewer_samples_than_features() -> None:
    real = features(20, 50, 0)
    assert frechet_distance(real, real.flip(0)).item() == pytest.approx(0.0, abs=1e-3 * real.T.cov().trace().item())


def test_kernel_distance_is_torchmetrics() -> None:
    real, fake = features(80, 12, 0), features(80, 12, 1)
    torch.testing.assert_close(kernel_distance(real, fake), poly_mmd(real, fake), rtol=1e-8, atol=1e-8)


def test_kernel_distance_is_unbiased() -> None:
    """The mean over many pairs of small sets from one distribution is zero within its standard error."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400, 2, 10, 4, generator=generator, dtype=torch.float64)
    distances = torch.stack([kernel_distance(real, fake) for real, fake in draws])
    assert abs(distances.mean()) < 4 * distances.std() / len(distances) ** 0.5
    assert distances.min() < 0


def test_table_gives_the_same_on_uneven_ranks(tmp_path: Path) -> None:
    # Forked ranks need not import torch again.
    mp.start_processes(_on_rank, (str(tmp_path),), nprocs=3, start_method="fork")  # pyright: ignore


def _on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    real, fake = features(10, 4, 0), features(10, 4, 1)
    table = FeatureTable(12)  # two samples are never added, and the last rank adds none
    for rows in [torch.tensor([9, 2, 5]), torch.tensor([0, 7])][rank : rank + 1]:
        table.add(rows, real[rows], fake[rows])
    if rank == 1:
        table.add(torch.tensor([], dtype=torch.int64), real[:0], fake[:0])
    gathered = table.gather(4, torch.device("cpu"))
    order = [0, 2, 5, 7, 9]
    assert torch.equal(gathered[0], real[order])
    assert torch.equal(gathered[1], fake[order])
    dist.destroy_process_group()


def test_scores_are_appended_and_those_of_repeated_steps_replaced(tmp_path: Path) -> None:
    for step in (5, 10, 15, 10):
        append_score(tmp_path, {"step": step, "distance": float(step)})
    assert [line["step"] for line in read_scores(tmp_path)] == [5, 10]


def test_a_score_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    append_score(tmp_path, {"step": 5})
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write('{"step": 10, "dist')
    assert [line["step"] for line in read_scores(tmp_path)] == [5]
    append_score(tmp_path, {"step": 15})
    assert [line["step"] for line in read_scores(tmp_path)] == [5, 15]

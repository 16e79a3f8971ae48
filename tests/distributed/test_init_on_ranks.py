"""A run of two ranks starts from the weights that rank 0 has read."""

from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS
from safetensors.torch import load_file
from several_lines import on_ranks
from watching import run_forked

from trainer.checkpoint import initial
from trainer.run.metrics_file import read_metrics

# BatchNorm's running statistics are what DistributedDataParallel does not send to the other ranks.
WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'normalised'}]",
    "task=spirals",
    "task.name=normalised",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
    "trainer.sync_batchnorm=true",
    "run.name=run",
]
SHORT = [*WORDS, "trainer.max_steps=2", "trainer.limit_val_batches=0"]


def only_rank_0_reads(rank: int) -> None:
    if rank:
        initial.read_weights = lambda file: {}


def trained(directory: Path, words: list[str], ranks: int = 1) -> tuple[Path, list[float]]:
    """Returns: (run, training losses)."""
    directory.mkdir()
    assert run_forked(words, directory, ranks=ranks, prepare=only_rank_0_reads) == [0] * ranks
    run = directory / "outputs" / "normalised" / "run"
    return run, [line["train/loss"] for line in read_metrics(run) if "train/loss" in line]


def test_one_and_two_ranks_start_from_the_same_weights(tmp_path: Path) -> None:
    source, fresh = trained(tmp_path / "source", [*WORDS, "trainer.max_epochs=1"])
    words = [*SHORT, f"init.from={source}"]
    one, losses = trained(tmp_path / "one", words)
    two, other_losses = trained(tmp_path / "two", words, ranks=2)
    assert other_losses == pytest.approx(losses, abs=1e-6)
    assert losses[0] < fresh[0] - 0.01
    expected, found = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6, name


# Importing DeepSpeed on two ranks takes longer than all the steps.
STRATEGIES = [["auto", "fsdp2"], pytest.param(["deepspeed_stage_2"], marks=pytest.mark.slow)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("strategies", STRATEGIES)
def test_two_ranks_start_and_continue_as_one_does(strategies: list[str], tmp_path: Path) -> None:
    words = [*WORDS, "trainer.limit_val_batches=0", "scheduler=constant"]
    source, _ = trained(tmp_path / "source", [*words, "trainer.max_epochs=1"])
    starts = {"state": ["trainer.max_epochs=2", "optimizer.lr=0.05", f"ckpt_path={source}"]}
    starts["weights"] = ["trainer.max_steps=3", f"init.from={source}"]
    lines = []
    for start, more in starts.items():
        trained(tmp_path / start, [*words, *more])
        lines += [(tmp_path / f"{start}-{name}", [*words, *more, f"strategy={name}"]) for name in strategies]
    for directory, _ in lines:
        directory.mkdir()
    assert on_ranks(2, tmp_path, lines) == [0] * len(lines)
    for directory, _ in lines:
        alone = tmp_path / directory.name.partition("-")[0]
        one, two = (place / "outputs" / "normalised" / "run" for place in (alone, directory))
        losses, found_losses = (
            [line["train/loss"] for line in read_metrics(run) if "train/loss" in line] for run in (one, two)
        )
        assert len(losses) in (3, 16)
        assert found_losses == pytest.approx(losses, abs=1e-5), directory.name
        expected, found = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
        assert all((found[name] - value).abs().max() <= 1e-5 for name, value in expected.items()), directory.name

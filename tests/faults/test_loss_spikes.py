"""A spike of the loss, by the stated rule, is handled as a loss that is not finite."""

from __future__ import annotations

import re
import signal
import statistics
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, SPIRALS, SPIRALS_WORDS
from safetensors.torch import load_file
from two_ranks import in_one_process, on_two_ranks, only_run
from watching import run_forked

from trainer.cli import main
from trainer.faults.spikes import FEWEST, SMALLEST_DEVIATION, LossSpikes

BAD_STEP = 30
WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    *SPIRALS_WORDS[1:],
    "task.name=faulty",
    "trainer.enable_progress_bar=false",
    "trainer.max_steps=40",
    "trainer.max_epochs=3",
    "trainer.val_check_interval=5",
    "run.name=run",
]
SPIKE, NAN = (f"{kind}:0:{BAD_STEP - 1}" for kind in ("spike", "nan_loss"))


def found(spikes: LossSpikes, loss: float) -> bool:
    spikes.add("model", torch.tensor(loss))
    return spikes.found("model") is not None


@pytest.mark.parametrize("offset", [0.0, -100.0])
def test_the_rule(offset: float) -> None:
    """Losses of any sign; a spike is not among those that later losses are compared with."""
    generator = torch.Generator().manual_seed(0)
    losses = (offset + torch.rand(150, generator=generator, dtype=torch.float64)).tolist()
    spikes = LossSpikes(limit=10.0)
    for loss in losses[: FEWEST - 1]:
        assert not found(spikes, loss)
    assert not found(spikes, offset + 1e6)
    spikes = LossSpikes(limit=10.0)
    assert [loss for loss in losses if found(spikes, loss)] == []
    last = losses[-100:]
    median = statistics.median(last)
    deviation = statistics.median(abs(loss - median) for loss in last)
    deviation = max(deviation, SMALLEST_DEVIATION * abs(median))
    assert found(spikes, median + 10.001 * deviation)
    assert found(spikes, median + 10.001 * deviation)
    assert not found(spikes, median + 9.999 * deviation)
    assert not found(spikes, median - 1000 * deviation)


def test_micro_batches_add_up_and_networks_are_apart() -> None:
    spikes = LossSpikes(limit=3.0)
    for _ in range(FEWEST):
        for network, loss in (("generator", 1.0), ("discriminator", 100.0)):
            spikes.add(network, torch.tensor(loss / 2))
            spikes.add(network, torch.tensor(loss / 2))
            assert spikes.found(network) is None
    assert spikes.state_dict() == {"generator": [1.0] * FEWEST, "discriminator": [100.0] * FEWEST}
    spikes.add("generator", torch.tensor(50.0))
    spikes.add("generator", torch.tensor(50.0))
    assert spikes.found("generator") == "is 100, 9.9e+04 deviations of 0.001 above the median 1"


def test_a_strategy_that_decides_by_itself_is_refused(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SPIRALS_WORDS, "strategy=deepspeed_stage_2", "faults.loss_spike=20"]) == 2
    assert "faults.loss_spike=20.0: deepspeed_stage_2 decides by itself" in capsys.readouterr().err


@pytest.fixture(scope="module")
def skipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose loss is NaN where that of the others is a spike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULT", NAN)
        folder = tmp_path_factory.mktemp("skipped")
        return in_one_process(folder / "run", [*WORDS, "faults.on_nonfinite=skip"])


def same_weights(ours: Path, theirs: Path) -> bool:
    one, other = (load_file(run / "model.safetensors") for run in (ours, theirs))
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_spike_is_skipped_as_a_nan_is(
    policy: str, skipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAULT", SPIKE)
    run = in_one_process(tmp_path / "run", [*WORDS, "faults.loss_spike=20", f"faults.on_nonfinite={policy}"])
    assert same_weights(run, skipped)
    error = capfd.readouterr().err
    assert re.search(rf"^step {BAD_STEP}: the loss of model is \d.*deviations of .* above the median 0\.", error)
    unnoticed = in_one_process(tmp_path / "unnoticed", WORDS)
    assert not same_weights(unnoticed, skipped)


@pytest.mark.slow
def test_the_default_policy_stops(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAULT", SPIKE)
    assert main([*WORDS, "faults.loss_spike=20"]) == 1
    first, second, third = capfd.readouterr().err.rstrip().split("\n")[-3:]
    assert first.startswith(f"step {BAD_STEP}: the loss of model is ")
    assert (in_directory / second.removeprefix("samples of each rank: ")).is_file()
    assert "faults.on_nonfinite" in third


@pytest.mark.slow
def test_a_resumed_run_knows_the_losses_before(skipped: Path, in_directory: Path) -> None:
    """After the checkpoint there are too few losses to call any a spike."""
    words = [*WORDS, "faults.loss_spike=20", "faults.on_nonfinite=skip"]
    assert run_forked(words, in_directory, FAULT=f"{SPIKE} sigkill:0:{BAD_STEP - 4}") == [-signal.SIGKILL]
    assert run_forked(words, in_directory, FAULT=SPIKE) == [0]
    assert same_weights(only_run(in_directory), skipped)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_spike_on_one_rank_is_skipped_on_both(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skipped: Path
) -> None:
    monkeypatch.setenv("FAULT", f"spike:1:{BAD_STEP - 1}")
    (tmp_path / "run").mkdir()
    words = [*WORDS, f"strategy={strategy}", "model.dropout=0.0", "faults.loss_spike=20", "faults.on_nonfinite=skip"]
    on_two_ranks(tmp_path, {tmp_path / "run": words})
    page = only_run(tmp_path / "run") / "faults" / f"nonfinite-step-{BAD_STEP:08d}.txt"
    assert re.match(
        rf"step {BAD_STEP}: the loss of model is .*, the largest loss .* on rank 1, samples", page.read_text()
    )

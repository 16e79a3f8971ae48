"""Training on from a whole state: a run that is made longer, and a new run from ckpt_path."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from conftest import REPOSITORY, SPIRALS
from safetensors.torch import load_file

from trainer.cli import main
from trainer.run.metrics_file import read_metrics

# 16 steps an epoch, evaluated every 5; a constant rate without warm-up is the same schedule for every length.
WORDS = [
    f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]",
    "task=spirals",
    "task.name=faulty",
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "model.dropout=0.3",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "optimizer.lr=0.2",
]
CONSTANT = ["scheduler=constant", "trainer.val_check_interval=5"]
# Each (words, words of the shorter run, words of the longer one): whole epochs; the middle of an epoch; no evaluation.
LENGTHS = {
    "epochs": ([], "trainer.max_epochs=2", "trainer.max_epochs=4"),
    "steps": (["trainer.max_epochs=9"], "trainer.max_steps=23", "trainer.max_steps=40"),
    "no evaluation": (["trainer.limit_val_batches=0"], "trainer.max_epochs=1", "trainer.max_epochs=3"),
    "steps without": (["trainer.max_epochs=9", "trainer.limit_val_batches=0"], "trainer.max_steps=7",
                      "trainer.max_steps=20"),
    "steps, worse": (["trainer.max_epochs=9", "checkpoint.at_evaluation=false", "monitor.metric=val/loss"],
                     "trainer.max_steps=23", "trainer.max_steps=40"),
}  # fmt: skip


def run_of(root: str, name: str = "run") -> Path:
    return Path(root) / "faulty" / name


def trained_lines(run: Path) -> list[str]:
    lines = [line for line in read_metrics(run) if "train/loss" in line]
    return [json.dumps({n: v for n, v in line.items() if not n.startswith("perf/")}) for line in lines]


def assert_same_weights(run: Path, expected: Path) -> None:
    ours, theirs = load_file(run / "model.safetensors"), load_file(expected / "model.safetensors")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())


def with_cost(name: str) -> ParameterSet:
    """Each is five runs."""
    return pytest.param(*LENGTHS[name], id=name, marks=[] if name in ("epochs", "steps, worse") else pytest.mark.slow)


@pytest.mark.parametrize(("words", "short", "long"), [with_cost(name) for name in LENGTHS])
def test_both_ways_equal_an_uninterrupted_run(words: list[str], short: str, long: str, in_directory: Path) -> None:
    words = [*WORDS, *CONSTANT, "run.name=run", *words]
    assert main([*words, short, "run.root=short"]) == 0
    assert main([*words, long, "run.root=other", "ckpt_path=short/faulty/run"]) == 0
    assert main([*words, long, "run.root=short"]) == 0
    assert main([*words, long, "run.root=whole"]) == 0
    whole = run_of("whole")
    assert_same_weights(run_of("short"), whole)
    assert trained_lines(run_of("short")) == trained_lines(whole)
    steps = int(json.loads(trained_lines(run_of("other"))[0])["step"])
    assert trained_lines(run_of("other")) == trained_lines(whole)[steps - 1 :]
    assert steps > 1


def test_a_longer_run_has_its_own_record_results_and_schedule(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = [*WORDS, "scheduler.warmup_fraction=0.0", "run.name=run"]
    assert main([*words, "trainer.max_epochs=1"]) == 0
    run = run_of("outputs")
    shorter = load_file(run / "model.safetensors")
    (run / "eval.json").write_text("{}")
    capsys.readouterr()
    # Stopped before its first checkpoint, and once more after it.
    for step in (17, 40):
        with monkeypatch.context() as patch:
            patch.setenv("FAULT", f"sigterm:0:{step}")
            assert main([*words, "trainer.max_epochs=3"]) == 75
            assert not (run / "model.safetensors").exists() and not (run / "eval.json").exists()
    printed = capsys.readouterr().out
    assert "continuing from step-00000016" in printed
    assert main([*words, "trainer.max_epochs=3"]) == 0

    record = json.loads((run / "run.json").read_text())
    (change,) = record["continuations"]
    assert change["changed"] == {"trainer.max_epochs": [1, 3]} and change["attempt"] == 2
    assert record["attempts"][0]["cause"] == "16 steps done"
    assert record["status"] == "finished" and record["identity"]["trainer.max_epochs"] == 3
    kept = run / change["results"]
    assert kept.name == "until-step-00000016" and (kept / "eval.json").exists()
    assert all(torch.equal(t, shorter[name]) for name, t in load_file(kept / "model.safetensors").items())
    # A cosine without warm-up over 16 steps, then that over 48, at the step itself.
    rates = {line["step"]: line["optim/lr"] for line in read_metrics(run) if "optim/lr" in line}
    for step, rate in rates.items():
        total = 16 if step <= 16 else 48
        assert rate == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * (step - 1) / total)), rel=1e-6), step
    assert sorted(rates) == list(range(1, 49))
    assert f"learning rate: {rates[17]:.4g} from step 17 of 48 on" in printed

    assert main([*words, "trainer.max_epochs=2"]) == 2
    message = capsys.readouterr().err.strip()
    assert "differs in trainer.max_epochs" in message and "longer, not shorter" in message
    # The directory keeps its name; the same command without it makes a run beside.
    assert main([*words, "trainer.max_epochs=3"]) == 0
    assert (run.parent / "run-2").exists()


def test_a_new_run_from_a_state_takes_the_new_rate_and_starts_its_own_best(
    in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Worse from epoch to epoch: the best one would be the source's, and its patience would end at step 48.
    monkeypatch.setenv("EVALUATED", "0.9,0.8,0.7,0.6")
    words = [*WORDS, "scheduler=constant", "monitor.patience=2", "run.name=run"]
    assert main([*words, "trainer.max_epochs=2", "run.root=source"]) == 0
    more = ["trainer.max_epochs=4", "optimizer.lr=0.05", "optimizer.momentum=0.5", "optimizer.nesterov=false"]
    command = [*words, *more, "ckpt_path=source/faulty/run/checkpoints/last"]
    assert main(command) == 0
    run = run_of("outputs")
    lines = read_metrics(run)
    assert {line["optim/lr"] for line in lines if "optim/lr" in line} == {0.05}
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(33, 65))
    last = torch.load(run / "checkpoints" / "last" / "state.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.5
    assert last["checkpointing"]["best"][0][1] == 48
    record = json.loads((run / "run.json").read_text())
    assert record["checkpointed"] and record["init"]["file"].endswith("state.ckpt")
    assert record["identity"]["init"].startswith("state sha256:")
    assert len(record["attempts"]) == 1


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*WORDS, "trainer.max_epochs=1", "run.name=run"]) == 0
    run = folder / run_of("outputs")
    torch.save({"state_dict": {}, "optimizer_states": [], "lr_schedulers": []}, run / "lightning.ckpt")
    (run / "cut.ckpt").write_bytes((run / "checkpoints" / "last" / "state.ckpt").read_bytes()[:5000])
    return run


# (place in the run, further words, what the message must contain)
BAD = {
    "a name of Lightning's": (None, ["ckpt_path=last"], ["init.ckpt_path=last", "the same command resumes"]),
    "nothing there": ("nowhere", [], ["no such file"]),
    "weights only": ("model.safetensors", [], ["init.ckpt_path", "no state_dict"]),
    "Lightning's own": ("lightning.ckpt", [], ["no whole state", "loops", "init.from="]),
    "damaged": ("cut.ckpt", [], ["cut.ckpt"]),
    "another model": ("", ["model.width=8"], ["another model", "model.0.weight", "init.from"]),
    "another optimizer": ("", ["optimizer=adam"], ["optimizer", "init.from"]),
    "other data": ("", ["data.noise=0.3"], ["other data"]),
    "another seed": ("", ["seed=3"], ["seed=3", "has 0"]),
    "another batch": ("", ["batch.global_size=16"], ["batch.global_size=16", "has 32"]),
    "nothing left": ("", ["trainer.max_epochs=1"], ["trainer.max_epochs=1", "1 done"]),
    "no steps left": ("", ["trainer.max_steps=16"], ["trainer.max_steps=16", "16 done"]),
    "both": ("", ["init.from=x"], ["init.ckpt_path", "init.from"]),
    "strict without weights": ("", ["init.strict=true"], ["init.strict=true", "no effect"]),
    "a hash alone": (None, [f"init.sha256={'0' * 64}"], ["init.sha256", "no effect"]),
    "a number": (None, ["ckpt_path=3"], ["init.ckpt_path=3", "string"]),
    "a word for strict": (None, ["init.strict=maybe"], ["init.strict=maybe", "boolean"]),
    "no hash": (None, ["init.sha256=abc"], ["init.sha256=abc"]),
    "no such key": (None, ["init.form=x"], ["init.form=x", "did you mean from?"]),
    "a node": (None, ["init=x"], ["init=x"]),
}


@pytest.mark.parametrize(("place", "words", "parts"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_continued_is_a_user_error(
    place: str | None,
    words: list[str],
    parts: list[str],
    source: Path,
    in_directory: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    given = [] if place is None else [f"ckpt_path={source / place}"]
    assert main([*WORDS, "trainer.max_epochs=2", *given, *words]) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.split("\n")) <= 3 and "Traceback" not in message
    assert all(part in message for part in parts), message

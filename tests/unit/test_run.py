"""A run's identity, its siblings, its lock and its record."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS

from trainer.config.identity import identity_hash
from trainer.errors import UserError
from trainer.run.directory import Run, open_run
from trainer.verbs.prepare import Options, PreparedRun, prepare


def planned(*words: str) -> PreparedRun:
    return prepare([*SPIRALS_WORDS, *words], Options())


def opened(*words: str) -> Run:
    plan = planned(*words)
    return open_run(plan.config, plan.mapping)


def finish(run: Run, status: str = "finished") -> Path:
    run.record.begin_attempt("single", 1)
    run.record.end_attempt(status, "as planned")
    run.close()
    return run.directory


def test_identity_is_what_is_computed_not_where(in_directory: Path) -> None:
    base = identity_hash(planned().config)
    same = ("trainer.devices=2", "batch.micro_size=4", "logger=none", "run.root=elsewhere", "strategy=ddp",
            "performance.compile=true", "trainer.log_every_n_steps=3", "launch.timeout_s=9.0")  # fmt: skip
    for word in same:
        assert identity_hash(planned(word).config) == base, word
    other = ("seed=1", "batch.global_size=64", "optimizer.lr=0.2", "model.width=16", "data.noise=0.1",
             "trainer.precision=bf16-mixed", "trainer.max_epochs=4", "scheduler=linear", "optimizer=adam")  # fmt: skip
    for word in other:
        assert identity_hash(planned(word).config) != base, word


def test_an_unfinished_run_is_resumed_and_a_finished_one_gets_a_sibling(in_directory: Path) -> None:
    first = opened()
    assert not first.resumed
    wandb_id = first.record.read()["wandb_id"]
    finish(first, "stopped")
    again = opened()
    assert again.resumed
    assert again.directory == first.directory
    assert again.record.read()["wandb_id"] == wandb_id
    finish(again)
    assert len(again.record.read()["attempts"]) == 2
    sibling = opened()
    assert not sibling.resumed
    assert sibling.directory.name == f"{first.directory.name}-2"
    finish(sibling, "failed")
    assert opened().resumed


def test_fresh_starts_beside_an_unfinished_run(in_directory: Path) -> None:
    first = finish(opened(), "stopped")
    fresh = opened("run.fresh=true")
    assert not fresh.resumed
    assert fresh.directory != first


def test_a_name_belongs_to_one_experiment_once_it_has_trained(in_directory: Path) -> None:
    first = finish(opened("run.name=mine", "seed=4"), "failed")
    second = opened("run.name=mine")
    assert (second.directory, second.resumed) == (first, False)
    assert second.record.read()["identity"]["seed"] == 0
    (first / "metrics.jsonl").write_text("{}\n")
    finish(second)
    with pytest.raises(UserError, match=r"run.name=mine.*differs in seed"):
        opened("run.name=mine", "seed=5")


def test_a_run_in_use_is_refused_with_its_holder(in_directory: Path) -> None:
    held = opened()
    code = f"""
from trainer.cli import main
raise SystemExit(main({SPIRALS_WORDS!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"in use by process {os.getpid()} on" in done.stderr
    assert len(done.stderr.strip().split("\n")) <= 3
    held.close()


def test_the_lock_ends_with_its_holder(in_directory: Path) -> None:
    code = f"""
import os, signal
from trainer.verbs.prepare import Options, prepare
from trainer.run.directory import open_run
plan = prepare({SPIRALS_WORDS!r}, Options())
run = open_run(plan.config, plan.mapping)
run.record.begin_attempt("single", 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert opened().resumed


def test_the_record_holds_code_versions_and_hardware(in_directory: Path) -> None:
    directory = finish(opened())
    record = json.loads((directory / "run.json").read_text())
    (attempt,) = record["attempts"]
    assert attempt["git"].keys() == {"sha", "modified"}
    assert attempt["versions"]["torch"]
    assert attempt["hardware"]["num_cores"] == os.cpu_count()
    assert attempt["start"] and attempt["end"] and attempt["cause"] == "as planned"
    assert record["hash"] in directory.name

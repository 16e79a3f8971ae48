"""Secrets reach a run as references; nothing that a run writes holds them."""

import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import SPIRALS_WORDS
from omegaconf import OmegaConf

from trainer.checkpoint.weights import write_weights
from trainer.cli import main
from trainer.config.compose import without_secrets
from trainer.config.secrets import HIDDEN, is_secret_name, redact_text, redact_words
from trainer.run.directory import open_run
from trainer.run.stored_config import read_stored_config
from trainer.verbs.prepare import Options, prepare

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def environment(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    monkeypatch.setenv("INNOCENT", SECRET[::-1])
    monkeypatch.setenv("WIDTH", "24")


def written(run_dir: Path) -> str:
    """All text that a run has written, W&B's offline file included."""
    return "\n".join(path.read_text(errors="replace") for path in run_dir.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "notes",
    [
        "${oc.env:INNOCENT}",
        "${oc.env: INNOCENT}",
        "text around ${oc.env:INNOCENT} it",
        "${oc.env:ABSENT,${oc.env:INNOCENT}}",
        "${oc.decode:${oc.env:INNOCENT}}",
        "${logger.wandb.tags[0]}",
        SECRET,  # as a shell that expands $MY_TOKEN passes it
        f"text around {SECRET} it",
    ],
)
def test_what_comes_from_the_environment_stays_a_reference(notes: str) -> None:
    words = ["logger=wandb", "logger.tags=['${oc.env:INNOCENT}']", f"logger.notes='{notes}'", "logger.mode=offline"]
    plan = prepare([*SPIRALS_WORDS, *words], Options())
    run = open_run(plan.config, plan.mapping)
    run.record.begin_attempt("single", 1)
    run.close()
    text = written(run.directory)
    assert SECRET not in text and SECRET[::-1] not in text
    # The references are resolved again where the configuration is used.
    assert read_stored_config(run.directory).config.logger == plan.config.logger


def test_the_identity_holds_references_too() -> None:
    plan = prepare([*SPIRALS_WORDS, "model.width='${oc.decode:${oc.env:WIDTH}}'"], Options())
    run = open_run(plan.config, plan.mapping)
    run.close()
    assert run.record.read()["identity"]["model.width"] == "${oc.decode:${oc.env:WIDTH}}"
    assert read_stored_config(run.directory).config.model == plan.config.model


def test_other_interpolations_are_resolved() -> None:
    mapping = OmegaConf.create({"a": "x", "b": "${a}/y", "c": ["${b}"], "d": {"e": "${c}"}, "f": "???", "g": None})
    resolved = {"a": "x", "b": "x/y", "c": ["x/y"], "d": {"e": ["x/y"]}, "f": "???", "g": None}
    assert without_secrets(mapping) == resolved


@pytest.mark.parametrize(
    "node",
    [
        {"logger": {"api_key": "abc"}},
        {"data": {"hf_token": "abc"}},
        {"data": {"password": "abc"}},
        {"data": [{"client_secret": "abc"}]},
        {"sweep": {"storage": "mysql://me:abc@host/study"}},
    ],
    ids=str,
)
def test_a_literal_secret_is_refused_without_being_repeated(node: dict[str, object]) -> None:
    from trainer.errors import ConfigError

    with pytest.raises(ConfigError) as refusal:
        without_secrets(OmegaConf.create(node))
    assert "oc.env" in str(refusal.value)
    assert "abc" not in str(refusal.value)


def test_a_password_in_a_url_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", *SPIRALS_WORDS, "sweep=optuna", "sweep.storage='mysql://me:abcdef@host/study'", "seed=1,2"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "sweep.storage=***" in error and "abcdef" not in error
    assert not Path("outputs").exists()


def test_words_of_a_vocabulary_are_no_secrets() -> None:
    mapping = {"model": {"pad_token": "[PAD]", "eos_token": "<|end|>"}, "data": {"max_tokens": 5, "token": None}}
    assert without_secrets(OmegaConf.create(mapping)) == mapping
    assert [is_secret_name(name) for name in ("tokenizer", "monitor", "data.num_tokens", "keyboard")] == [False] * 4


def test_a_recorded_command_line_is_redacted() -> None:
    words = ["trainer", "data.hf_token=abc", "+logger.api_key='x y'", "sweep.storage=mysql://me:abc@host/study", SECRET]
    expected = ["trainer", f"data.hf_token={HIDDEN}", f"+logger.api_key={HIDDEN}"]
    expected += [f"sweep.storage=mysql://{HIDDEN}@host/study", "${oc.env:MY_TOKEN}"]
    assert redact_words(words) == expected
    assert redact_words(["task=cnn", "data.token='${oc.env:T}'"]) == ["task=cnn", "data.token='${oc.env:T}'"]


def test_a_whole_run_writes_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the command line, which W&B would record by itself."""
    words = [*SPIRALS_WORDS, "logger=wandb", "logger.mode=offline", f"launch.interface={SECRET}", "trainer.max_steps=2"]
    monkeypatch.setattr(sys, "argv", ["trainer", *words])
    assert main(words) == 0
    (run_dir,) = Path("outputs/spirals").iterdir()
    assert list(run_dir.glob("wandb/**/*.wandb"))
    assert SECRET not in written(run_dir)
    assert "${oc.env:MY_TOKEN}" in (run_dir / "run.json").read_text()


def test_the_diff_is_recorded_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.run import provenance

    assert "diff" not in (provenance.git_state(with_diff=False) or {})
    state = provenance.git_state(with_diff=True)
    assert state is None or state["diff"] == redact_text(state["diff"])
    plan = prepare([*SPIRALS_WORDS, "run.record_git_diff=true"], Options())
    run = open_run(plan.config, plan.mapping)
    with run.attempt("single", 1, lambda: False):
        pass
    assert "diff" in run.record.read()["attempts"][0]["git"]


@pytest.mark.parametrize(("private", "mode"), [("true", 0o700), ("false", 0o755)])
def test_a_run_is_for_its_user_alone_unless_it_is_shared(private: str, mode: int) -> None:
    before = os.umask(0o022)
    try:
        plan = prepare([*SPIRALS_WORDS, f"run.private={private}"], Options())
        run = open_run(plan.config, plan.mapping)
        run.close()
        write_weights({"weight": torch.zeros(2)}, run.directory / "model.safetensors")
    finally:
        os.umask(before)
    assert run.directory.stat().st_mode & 0o777 == mode
    assert {path.stat().st_mode & 0o777 for path in run.directory.iterdir() if path.is_file()} == {0o644}


def test_the_cause_of_a_failure_holds_no_secret() -> None:
    plan = prepare([*SPIRALS_WORDS], Options())
    run = open_run(plan.config, plan.mapping)
    with pytest.raises(ValueError, match=SECRET), run.attempt("single", 1, lambda: False):
        raise ValueError(f"cannot log in with {SECRET} at mysql://me:abcdef@host/study")
    text = (run.directory / "run.json").read_text()
    assert "cannot log in with ${oc.env:MY_TOKEN}" in text and "abcdef" not in text

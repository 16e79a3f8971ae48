"""What a run prints: paths in one piece, no Python reprs, the best of each metric with a known direction."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS
from rich.console import Console

from trainer.clock import STATES
from trainer.observe.account import Account
from trainer.observe.summary import print_start, print_summary
from trainer.observe.verdict import Verdict
from trainer.verbs.prepare import Options, prepare

# Longer than the terminal, with parts that rich would highlight or read as markup.
RUN = "outputs/bert/minilm-financial_phrasebank-0b4ecd33/[bold]/12/true"


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=40)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_start_is_plain(console: Console) -> None:
    plan = prepare([*SPIRALS_WORDS, "run.report=true"], Options())
    facts = {
        "model": {"num_parameters": {"model": 1234}},
        "data": {"sha256": {"train": "embedded", "val": "ab"}, "classes": ["a", "b"]},
    }
    for num_ranks, words in ((1, "1 rank, cpu"), (2, "2 ranks, cpu")):
        world = replace(plan.world, world_size=num_ranks)
        print_start(console, Path(RUN), plan.config, world, facts, ["resuming from step-00000300"])
        assert words in printed(console)
    lines = re.sub(r"\x1b\[[\d;]*m", "", printed(console)).splitlines()
    assert lines[0] == RUN
    assert "  sha256: train embedded, val ab" in lines
    assert "  classes: a, b" in lines
    assert "resuming from step-00000300" in printed(console)


def test_the_end_shows_paths_and_bests(console: Console, in_directory: Path) -> None:
    config = prepare([*SPIRALS_WORDS, "run.report=true"], Options()).config
    run = Path(RUN)
    run.mkdir(parents=True)
    lines = [
        {"step": 1, "train/loss": 3.0, "val/loss": 0.25, "val/accuracy": 0.5, "val/other": 1.0},
        {"step": 2, "train/loss": 2.0, "val/loss": 0.75, "val/accuracy": 0.875, "val/other": 2.0},
        {"step": 3, "train/loss": 1.0, "val/loss": float("nan"), "val/accuracy": 0.625, "val/other": 3.0},
        {"step": 3, "perf/samples_per_s": 5.0, "perf/share_forward": 0.75},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    verdict = Verdict("compute", 0.75, "evaluation", 0.25, "trainer.check_val_every_n_epoch=4", 4 / 3)
    account = Account(1.0, 2.0, dict.fromkeys(STATES, 0.0) | {"forward": 0.75, "evaluation": 0.25}, verdict)
    print_summary(console, run, config, account, {"W&B": f"python -m trainer sync run={RUN}"})
    # Whole, and without a colour inside.
    for place in ("", "/curves.png", "/metrics.jsonl", "/model.safetensors"):
        assert re.search(rf"{re.escape(RUN + place)}$", printed(console), re.MULTILINE), place
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed(console))
    assert "2.0 s of training, 1.0 s before it:\n  forward 75%, evaluation 25%\n" in plain
    assert "bound by compute (75%); without evaluation (25%) at most 1.3x as fast\n" in plain
    assert "try trainer.check_val_every_n_epoch=4 against evaluation\n" in plain
    rows = re.findall(r"│ (\S+) +│ (\S+) +│ (\S*) *│", re.sub(r"\x1b\[[\d;]*m", "", printed(console)))
    assert {name: (last, best) for name, last, best in rows} == {
        "perf/samples_per_s": ("5", ""),
        "train/loss": ("1", ""),
        "val/accuracy": ("0.625", "0.875"),
        "val/loss": ("nan", "0.25"),
        "val/other": ("3", ""),
    }

"""The verb eval: the same metrics on any number of ranks, of any checkpoint and data, and its user errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SPIRALS, SPIRALS_WORDS, CommandLine

from trainer.cli import main
from trainer.data.samplers import Share, evaluation_batches, num_evaluated
from trainer.run.metrics_file import read_metrics

TIMEOUT_S = 600.0  # only against ranks that hang
PLUGIN = f"plugins=[{SPIRALS}]"
WORDS = [*SPIRALS_WORDS, "data.num_validation=61", "batch.eval_size=20", "checkpoint.keep=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose last checkpoint is not its best: the highest loss counts as best."""
    directory = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main([*WORDS, "run.name=run", "monitor.metric=val/loss", "monitor.mode=max"]) == 0
    run = directory / "outputs" / "spirals" / "run"
    assert (run / "checkpoints" / "best").resolve() != (run / "checkpoints" / "last").resolve()
    return run


def only_other_result(run: Path, pattern: str) -> dict[str, Any]:
    (file,) = run.glob(pattern)
    content = json.loads(file.read_text())
    file.unlink()
    return content


def test_eval_repeats_the_best_validation_on_one_rank_and_two(run: Path, command_line: CommandLine) -> None:
    best = max((line for line in read_metrics(run) if "val/loss" in line), key=lambda line: line["val/loss"])
    assert main(["eval", f"run={run}"]) == 0
    once = json.loads((run / "eval.json").read_text())
    assert once["val/accuracy"] == best["val/accuracy"]
    assert once["val/loss"] == pytest.approx(best["val/loss"], abs=1e-6)
    done = command_line("eval", f"run={run}", "trainer.devices=2", PLUGIN, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    twice = json.loads((run / "eval.json").read_text())
    assert twice["val/accuracy"] == once["val/accuracy"]
    assert twice["val/loss"] == pytest.approx(once["val/loss"], abs=1e-6)


def test_a_limit_means_the_same_samples_on_one_rank_and_two(run: Path, command_line: CommandLine) -> None:
    words = [f"run={run}", "trainer.limit_val_batches=2"]
    assert main(["eval", *words]) == 0
    once = only_other_result(run, "eval-*.json")["metrics"]
    done = command_line("eval", *words, "trainer.devices=2", PLUGIN, timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    twice = only_other_result(run, "eval-*.json")["metrics"]
    assert twice["val/accuracy"] == once["val/accuracy"]
    assert twice["val/loss"] == pytest.approx(once["val/loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, 0), (1, 20), (3, 60), (4, 61), (0.0, 0), (0.5, 31), (0.001, 1), (1.0, 61)]
)
def test_a_limit_counts_samples_not_batches_of_a_rank(limit: float, expected: int) -> None:
    assert num_evaluated(61, limit, 20) == expected
    for world_size in (1, 2, 3):
        batches = [b for r in range(world_size) for b in evaluation_batches(expected, Share(r, world_size), 20)]
        assert sum(batch.num_valid for batch in batches) == expected


@pytest.mark.parametrize("name", ["last", "step-48", "step-00000048"])
def test_another_checkpoint(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = run / "eval.json"
    assert main(["eval", f"run={run}"]) == 0
    before = own.read_bytes()
    assert main(["eval", f"run={run}", f"checkpoint={name}"]) == 0
    assert own.read_bytes() == before
    last = [line for line in read_metrics(run) if "val/accuracy" in line][-1]
    result = only_other_result(run, "eval-step-00000048.json")
    assert result["metrics"]["val/accuracy"] == last["val/accuracy"]
    assert result["metrics"]["val/loss"] == pytest.approx(last["val/loss"], abs=1e-6)
    assert json.loads(before)["val/loss"] != pytest.approx(last["val/loss"], abs=1e-3)
    assert "step-00000048 on points" in capsys.readouterr().out


def test_a_checkpoint_by_its_path(run: Path, tmp_path: Path) -> None:
    assert main(["convert", f"run={run}", "checkpoint=last", f"out={tmp_path / 'last.safetensors'}"]) == 0
    for place in (run / "checkpoints" / "last", tmp_path / "last.safetensors"):
        assert main(["eval", f"run={run}", f"checkpoint={place}"]) == 0
        last = [line for line in read_metrics(run) if "val/accuracy" in line][-1]
        metrics = only_other_result(run, "eval-*.json")["metrics"]
        assert metrics["val/accuracy"] == last["val/accuracy"]


def test_other_data_comes_from_the_group_files(run: Path, tmp_path: Path, command_line: CommandLine) -> None:
    """Also from a folder of the user's own, and on two ranks."""
    (tmp_path / "own" / "data").mkdir(parents=True)
    own = {"name": "points", "num_points": 10, "num_validation": 33, "num_test": 0, "noise": 0.5}
    (tmp_path / "own" / "data" / "noisy.yaml").write_text(yaml.safe_dump(own))
    words = [f"run={run}", "data=noisy", "data.noise=0.4", "--config-dir", str(tmp_path / "own"), PLUGIN]
    assert main(["eval", f"run={run}"]) == 0
    before = (run / "eval.json").read_bytes()
    assert main(["eval", *words]) == 0
    once = only_other_result(run, "eval-points-*.json")
    assert once["changed"] == {"data.noise": 0.4, "data.num_points": 10, "data.num_validation": 33}
    assert (once["metrics"]["val/accuracy"] * 33) == pytest.approx(round(once["metrics"]["val/accuracy"] * 33))
    done = command_line("eval", *words, "trainer.devices=2", timeout_s=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    twice = only_other_result(run, "eval-points-*.json")
    assert twice["metrics"]["val/accuracy"] == once["metrics"]["val/accuracy"]
    assert (run / "eval.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["foo=1"], "eval has no such argument"),
        (["checkpont=last"], "did you mean checkpoint?"),
        (["checkpoint=lst"], "did you mean last?"),
        (["checkpoint=step-7"], "not in"),
        (["checkpoint=nowhere/at/all"], "no such file"),
        (["data=cifra10"], "data=cifra10: no such data"),
        (["data=cifar10"], "no such data of task=spirals"),
        (["data=points", "data.noise=loud"], "data.noise=loud"),
        (["data=points", "data.nose=1"], "data.nose=1"),
        (["optimizer.lr=1"], "optimizer.lr=1: eval would ignore it"),
        (["trainer.max_epochs=1"], "trainer.max_epochs=1: eval would ignore it"),
        (["batch.global_size=2"], "batch.global_size=2: eval would ignore it"),
        (["trainer.precission=32-true"], "trainer.precission"),
        (["trainer.devices=1,2"], "one value is possible"),
        (["-m"], "no such option"),
        (["trainer.limit_val_batches=0"], "has no validation or test set"),
    ],
    ids=str,
)
def test_what_has_no_effect_or_is_wrong_is_refused(
    words: list[str], expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.iterdir())
    assert main(["eval", f"run={run}", *words]) == 2
    captured = capsys.readouterr().err
    assert expected in captured
    assert len(captured.strip().split("\n")) <= 3
    assert sorted(run.iterdir()) == before


def test_a_damaged_checkpoint_is_refused(run: Path, tmp_path: Path, command_line: CommandLine) -> None:
    """By rank 0 for all ranks."""
    copy = tmp_path / "step-00000016"
    copy.mkdir()
    for file in (run / "checkpoints" / "step-00000016").iterdir():
        (copy / file.name).write_bytes(file.read_bytes()[: -1 if file.name == "state.ckpt" else None])
    done = command_line("eval", f"run={run}", f"checkpoint={copy}", "trainer.devices=2", PLUGIN, timeout_s=TIMEOUT_S)
    assert done.returncode == 2
    assert done.stderr.count(": damaged (") == 1


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_a_stored_run_imports_no_code_unasked(verb: str, run: Path, command_line: CommandLine, tmp_path: Path) -> None:
    """The plugin of a run from elsewhere leaves a mark when it is imported."""
    plugin = tmp_path / "marking"
    plugin.mkdir()
    (plugin / "__init__.py").write_text("")
    (plugin / "config.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nfrom spirals.config import TASK\n")
    other = tmp_path / "run"
    other.mkdir()
    for name in ("run.json", "model.safetensors"):
        (other / name).write_bytes((run / name).read_bytes())
    config = yaml.safe_load((run / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "plugins": [str(plugin)]}))
    done = command_line(verb, f"run={other}")
    assert done.returncode == 2
    assert not (tmp_path / "mark").exists()
    assert f"repeat it: plugins=[{plugin}]" in done.stderr
    assert len(done.stderr.strip().split("\n")) <= 3
    command_line(verb, f"run={other}", f"plugins=[{plugin}]")
    assert (tmp_path / "mark").exists()


def test_a_plugin_that_the_task_does_not_come_from_is_left_alone(
    run: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    other = tmp_path / "run"
    other.mkdir()
    for file in ("run.json", "model.safetensors"):
        (other / file).write_bytes((run / file).read_bytes())
    config = yaml.safe_load((run / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "plugins": [*config["plugins"], "nowhere"]}))
    done = command_line("eval", f"run={other}", PLUGIN)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval"], "needs run=DIR"),
        (["eval", "run=nowhere"], "not a run directory"),
        (["eval", "run=unfinished"], "no model.safetensors yet"),
        (["predict", "run=unfinished", "n=3"], "n=3: possible: input"),
        (["predict", "run=unfinished", "trainer.limit_val_batches=3"], "predict would ignore it"),
    ],
)
def test_what_is_wrong_with_a_run_is_printed(
    words: list[str], expected: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.run.directory import open_run
    from trainer.verbs.prepare import Options, prepare

    plan = prepare([*SPIRALS_WORDS, "run.name=unfinished", "run.root=runs"], Options())
    run = open_run(plan.config, plan.mapping)
    run.close()
    (in_directory / "unfinished").symlink_to(run.directory.resolve())
    assert main(words) == 2
    captured = capsys.readouterr().err
    assert expected in captured
    assert len(captured.strip().split("\n")) <= 3

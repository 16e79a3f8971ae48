"""A run that is older than some keys: what its config.yaml lacks comes from conf/, and what it has is kept."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SPIRALS_WORDS
from omegaconf import OmegaConf

from trainer.cli import main
from trainer.config import identity
from trainer.config.compose import compose_mapping, typed
from trainer.config.identity import config_to_mapping
from trainer.errors import ConfigError
from trainer.run.stored_config import read_stored_config

WORDS = [*SPIRALS_WORDS, "run.name=run", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
# Of a plain node, of groups, of the task's own conf/, and a whole node.
LACKING = ("trainer.limit_test_batches", "batch.micro_size", "strategy.bucket_cap_mb", "launch.endpoint",
           "model.dropout", "data.num_test", "scheduler.final_fraction", "performance", "sweep")  # fmt: skip


def without(config: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of a configuration without some dotted keys."""
    copy = json.loads(json.dumps(config))
    for key in keys:
        *parents, leaf = key.split(".")
        node = copy
        for parent in parents:
            node = node[parent]
        del node[leaf]
    return copy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main([*WORDS, "strategy=ddp", "model.width=16"]) == 0
    return directory / "outputs" / "spirals" / "run"


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run as a version without these keys would have left it."""
    run = tmp_path / "old"
    shutil.copytree(finished, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(without(config, LACKING)))
    return run


def test_only_missing_keys_are_filled(finished: Path, old: Path) -> None:
    file = old / "config.yaml"
    before = file.read_bytes()
    assert read_stored_config(old) == read_stored_config(finished)
    assert file.read_bytes() == before
    written = yaml.safe_load(before)
    # Values that differ from every default, and one that today's conf/ would not give.
    written["trainer"]["max_epochs"], written["model"]["width"], written["scheduler"] = 9, 7, {"name": "constant"}
    written["scheduler"]["warmup_fraction"] = 0.25
    file.write_text(yaml.safe_dump(written))
    config = read_stored_config(old).config
    assert (config.trainer.max_epochs, config.scheduler.name, config.scheduler.warmup_fraction) == (9, "constant", 0.25)
    assert config_to_mapping(config.model) == {"name": "mlp", "width": 7, "dropout": 0.1}


def test_the_values_of_a_task_come_before_those_of_every_task(tmp_path: Path) -> None:
    mapping = compose_mapping(["task=dcgan", "optimizer=adam_gan", "data=cifar10", "seed=3"])
    lacking = ("trainer.sync_batchnorm", "optimizer.betas", "data.flip", "model.width", "performance.channels_last")
    plain = without(OmegaConf.to_container(mapping), lacking)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain))
    assert read_stored_config(tmp_path).config == typed(mapping)[0]


def test_a_task_without_a_file_gets_the_values_of_every_task(old: Path) -> None:
    from spirals.config import TASK  # pyright: ignore[reportMissingImports]

    renamed = replace(TASK, name="renamed", conf=None)
    config = yaml.safe_load((old / "config.yaml").read_text())
    complete = {"strategy": {"name": "auto"}, "sweep": {"name": "grid", "parallel": 1}, "task": {"name": "renamed"}}
    file = old / "config.yaml"
    file.write_text(yaml.safe_dump({**config, **complete}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.config.compose.get_task", lambda name, plugins: renamed)
        with pytest.raises(ConfigError) as error:
            read_stored_config(old)
    # Groups are not filled; the other nodes are.
    missing = {problem.key for problem in error.value.problems}
    assert missing == {"launch.endpoint", "model.dropout", "data.num_test", "scheduler.final_fraction"}


def test_a_member_without_a_file_keeps_its_own_problem(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((old / "config.yaml").read_text())
    (old / "config.yaml").write_text(yaml.safe_dump({**config, "optimizer": {"name": "adagrad"}}))
    assert main(["eval", f"run={old}"]) == 2
    assert "optimizer=adagrad: no such optimizer" in capsys.readouterr().err
    (old / "config.yaml").write_text(yaml.safe_dump({**config, "trainer": [1]}))
    assert main(["eval", f"run={old}"]) == 2
    assert "trainer" in capsys.readouterr().err


def test_an_older_run_is_evaluated_and_applied(
    finished: Path, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = tmp_path / "points.json"
    points.write_text("[[0.1, 0.2]]")
    printed = []
    for run in (finished, old):
        assert main(["eval", f"run={run}", "performance.compile=false"]) == 0
        assert main(["predict", f"run={run}", f"input={points}"]) == 0
        printed.append(capsys.readouterr().out.strip().split("\n")[-1])
    assert (old / "eval.json").read_bytes() == (finished / "eval.json").read_bytes()
    assert printed[0] == printed[1] and "spiral" in printed[0]


def test_an_older_unfinished_run_is_resumed(
    finished: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded by a version without two keys: its identity has neither, and the same command continues it."""
    added = {"model.dropout": 0.1, "trainer.limit_test_batches": 1.0}
    monkeypatch.setattr(identity, "ADDED", added)
    words = [word for word in WORDS if not word.startswith("run.name")]
    assert main([*words, "trainer.max_epochs=1"]) == 0
    (run,) = (in_directory / "outputs" / "spirals").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert not added.keys() & record["identity"].keys()
    (run / "run.json").write_text(json.dumps({**record, "status": "stopped"}))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(without(config, tuple(added))))
    assert main([*words, "trainer.max_epochs=1"]) == 0
    assert [each.name for each in run.parent.iterdir()] == [run.name]
    assert len(json.loads((run / "run.json").read_text())["attempts"]) == 2
    assert main([*words, "trainer.max_epochs=1", "model.dropout=0.2"]) == 0
    assert len(list(run.parent.iterdir())) == 2, "another value is another experiment"

"""User errors: exit code 2, at most three lines that name key, value and what is possible."""

from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS
from warm import run_warm

from trainer.cli import main

# (words after the spirals task's own, what the message must contain)
ERRORS: dict[str, tuple[list[str], list[str]]] = {
    "misspelt key": (["optimizer.lrr=1"], ["optimizer.lrr=1", "did you mean lr?"]),
    "misspelt nested key": (["trainer.max_epoch=3"], ["trainer.max_epoch=3", "max_epochs"]),
    "misspelt section": (["trainr.max_epochs=3"], ["trainr.max_epochs=3"]),
    "misspelt group": (["optimiser=adam"], ["optimiser=adam", "optimizer"]),
    "misspelt member": (["optimizer=adamv"], ["optimizer=adamv", "adamw"]),
    "misspelt experiment": (["experiment=nothing_like_it"], ["experiment=nothing_like_it", "possible"]),
    "key of another member": (["data.path=x"], ["data.path=x", "the chosen data has no such key"]),
    "appended key": (["+optimizer.typo=1"], ["optimizer.typo=1", "no such key"]),
    "no equals sign": (["trainer.devices"], ["trainer.devices", "key=value"]),
    "unknown option": (["--frobnicate"], ["--frobnicate", "possible"]),
    "word for a number": (["trainer.devices=two"], ["trainer.devices=two", "integer"]),
    "number in quotes": (["optimizer.lr='0.1'"], ["optimizer.lr=0.1", "number"]),
    "fraction for a count": (["batch.global_size=1.5"], ["batch.global_size=1.5", "integer"]),
    "zero batch": (["batch.global_size=0"], ["batch.global_size=0", "greater than or equal to 1"]),
    "negative rate": (["optimizer.lr=-1"], ["optimizer.lr=-1", "greater than 0"]),
    "value outside its range": (["model.dropout=1.5"], ["model.dropout=1.5", "less than or equal to 1"]),
    "precision there is not": (["trainer.precision=fp8"], ["trainer.precision=fp8", "bf16-mixed"]),
    "precision the CPU lacks": (["trainer.precision=16-mixed"], ["trainer.precision=16-mixed", "bf16-mixed"]),
    "no GPU here": (["trainer.accelerator=cuda"], ["trainer.accelerator=cuda", "cpu"]),
    "batch not divisible": (["trainer.devices=3"], ["batch.global_size=32", "3 ranks", "30 or 33"]),
    "micro-batch not divisible": (["batch.micro_size=5"], ["batch.micro_size=5", "nearest: 4"]),
    "no end": (["trainer.max_epochs=null"], ["trainer.max_epochs=null", "trainer.max_steps"]),
    "nesterov without momentum": (["optimizer.momentum=0.0"], ["optimizer.nesterov=true", "momentum > 0"]),
    "monitor of training": (["monitor.metric=train/loss"], ["monitor.metric=train/loss", "val/"]),
    "patience without evaluation": (
        ["monitor.patience=2", "trainer.limit_val_batches=0"],
        ["monitor.patience=2", "limit_val_batches"],
    ),
    "interval across epochs": (
        ["trainer.check_val_every_n_epoch=null"],
        ["trainer.val_check_interval=1.0", "number of steps"],
    ),
    "one-cycle without a rise": (
        ["scheduler=one_cycle", "scheduler.warmup_fraction=0.0"],
        ["scheduler.warmup_fraction=0.0", "one_cycle"],
    ),
    "path as a name": (["run.name=a/b"], ["run.name=a/b", "file name"]),
    "root is a file": (["run.root=occupied"], ["run.root=occupied", "is a file"]),
    "several nodes without a launcher": (["trainer.num_nodes=2"], ["trainer.num_nodes=2", "torchrun"]),
    "online without a key": (["logger=wandb", "logger.mode=online"], ["logger.wandb.mode=online", "WANDB_API_KEY"]),
    "bad interpolation": (["run.name=${nowhere}"], ["run.name", "nowhere"]),
    "plugin that is none": (["plugins=[occupied]"], ["occupied", "config.py"]),
    "config folder that is none": (["--config-dir=nowhere"], ["--config-dir=nowhere", "no such directory"]),
    "verb there is not": (["fitt"], ["fitt", "fit"]),
    "several values without -m": (["optimizer.lr=0.1,0.2"], ["optimizer.lr=0.1,0.2", "-m optimizer.lr=0.1,0.2"]),
    "deleted group": (["~scheduler"], ["~scheduler: nothing can be deleted", "scheduler=NAME"]),
    "deleted key": (["~optimizer.lr"], ["~optimizer.lr: nothing can be deleted", "optimizer.lr=VALUE"]),
    "appended group": (["+experiment=x"], ["+experiment=x: write experiment=x"]),
    "appended key that exists": (["+trainer.max_epochs=3"], ["write trainer.max_epochs=3"]),
    "Hydra's run directory": (["hydra.run.dir=x"], ["hydra.run.dir=x", "run.root=DIR"]),
    "Hydra's launcher": (["hydra/launcher=joblib"], ["hydra/launcher=joblib", "have no effect"]),
    "no device": (["trainer.devices=0"], ["trainer.devices=0: should be greater than or equal to 1, or auto"]),
    "node without a key": (["trainer=3"], ["trainer=3", "KEY=VALUE"]),
    "plugin that is no list": (["plugins=3"], ["plugins=3", "plugins=[FOLDER]"]),
    "member of one's own without a name": (
        ["--config-dir=own", "optimizer=mine"],
        ["optimizer=mine: its file has no name", "adamw"],
    ),
    "Hydra's configuration": (["--cfg", "hydra"], ["--cfg hydra", "--cfg job"]),
    "Hydra's info": (["--info"], ["--info", "--cfg job", "plan"]),
    "Hydra's configuration name": (["--config-name=x"], ["--config-name=x", "experiment=NAME"]),
    "package there is not": (["--cfg", "job", "--package", "trainr"], ["--package trainr", "trainer"]),
    "option without a value": (["--config-dir"], ["--config-dir: needs a value"]),
}


@pytest.fixture
def directory(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (in_directory / "occupied").write_text("a file")
    (in_directory / "own" / "optimizer").mkdir(parents=True)
    (in_directory / "own" / "optimizer" / "mine.yaml").write_text("lr: 0.1\n")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(in_directory / "none"))
    return in_directory


@pytest.mark.parametrize("name", ERRORS)
def test_user_errors_are_printed_in_three_lines(name: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = ERRORS[name]
    line = words if name == "verb there is not" else [*SPIRALS_WORDS, *words]

    assert main(line) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().split("\n")) <= 3, captured.err
    for part in expected:
        assert part in captured.err, captured.err
    assert not (directory / "outputs").exists()


@pytest.mark.parametrize("word", ["~scheduler", "+experiment=x"])
def test_a_first_word_of_hydras_grammar_is_no_verb(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert "no such verb" not in capsys.readouterr().err


def test_all_problems_are_printed_at_once(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SPIRALS_WORDS, "optimizer.lr=-1", "trainer.precision=fp8", "model.width=0"]) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert [line.partition("=")[0] for line in lines] == ["trainer.precision", "model.width", "optimizer.lr"]


def test_a_run_that_cannot_be_written(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (in_directory / "outputs").mkdir()
    blocked = in_directory / "outputs" / "spirals"
    blocked.write_text("a file where a directory belongs")
    assert main(SPIRALS_WORDS) == 2
    assert str(Path("outputs/spirals")) in capsys.readouterr().err


def test_a_user_error_among_ranks_is_printed_once(tmp_path: Path) -> None:
    """torchrun adds its own report; of our two ranks only one prints."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer"]
    for words, expected in (
        ([*SPIRALS_WORDS, "optimizer.lrr=1"], "optimizer.lrr=1"),
        ([*SPIRALS_WORDS, "trainer.devices=3"], "trainer.devices=3"),
        (["-m", *SPIRALS_WORDS, "optimizer.lr=0.1,0.2"], "a sweep starts its own ranks"),
    ):
        # The deadline is only there against ranks that hang.
        done = run_warm([*command, *words], cwd=tmp_path, timeout_s=300)
        assert done.returncode != 0
        assert done.stderr.count(expected) == 1, done.stderr
        assert "Traceback" not in done.stderr.split("torch/distributed")[0]

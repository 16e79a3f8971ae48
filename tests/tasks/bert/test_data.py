import re

import datasets
import numpy as np
import pandas
import pytest
import torch
from transformers import BertTokenizer

from tasks.bert.data import build_data, hold_out
from tasks.bert.input_spec import InputSpec
from tasks.bert.intents import intent_rows
from tasks.bert.labels import Labels, is_unlabelled
from tasks.bert.tokenizers import learn_vocabulary
from trainer.config.compose import compose_mapping, typed
from trainer.errors import UserError


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
    assert ", 0 truncated (0.0%), 0.0% unknown" in data.describe()["train"]


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
    labels = Labels.of(rows(values), "train", "label", "classification")
    assert labels.names == names
    found = [names[number] for number in labels.encode(rows(values), "train")]
    assert found == [str(int(v)) if isinstance(v, float) else str(v) for v in values]


def test_given_labels_keep_their_order_in_every_split():
    def given(names, values):
        feature = datasets.ClassLabel(names=names)
        return rows(values, datasets.Features({"text": datasets.Value("string"), "label": feature}))

    labels = Labels.of(given(["z", "a"], [0, 1]), "train", "label", "classification")
    assert labels.names == ["z", "a"]
    assert labels.encode(given(["a", "z"], [0, 1, 1]), "test").tolist() == [1, 0, 0]


def test_wrong_labels_are_named():
    labels = Labels.of(rows(["a", "b"]), "train", "label", "classification")
    with pytest.raises(UserError, match=r"test: row 2: data.label=label: unknown labels c, d\n.* has a, b"):
        labels.encode(rows(["a", "c", "d", "c"]), "test")
    with pytest.raises(UserError, match=r"train: row 2: data.label=label: there is no label"):
        Labels.of(rows(["a", None]), "train", "label", "classification")
    with pytest.raises(UserError, match="only the class a"):
        Labels.of(rows(["a", "a"]), "train", "label", "classification")
    for values in ([1.0, 0.5], ["1", "0.5"]):
        with pytest.raises(UserError, match=r"row 2: data.label=label: 0.5 is no class"):
            Labels.of(rows(values), "train", "label", "classification")
    with pytest.raises(UserError, match=r"train: row 1: data.label=label: a is no score"):
        Labels("label", None, "").encode(rows(["a"]), "train")
    with pytest.raises(UserError, match="3,5 is no score"):
        Labels("label", None, "").encode(rows(["3.5", "3,5"]), "train")


def test_a_validation_split_is_held_out():
    train = rows(["a", "b"] * 10)
    splits, note = hold_out({"train": train}, 0.1)
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "val": 2}
    assert sorted([*splits["train"]["text"], *splits["val"]["text"]]) == sorted(train["text"])
    assert note == "val is 2 rows held out of train"
    assert hold_out({"train": train}, 0.1)[0]["val"]["text"] == splits["val"]["text"]


def test_a_split_without_labels_is_left_out(composed, texts, tmp_path):
    for label in ("", "-1"):
        frame = pandas.read_csv(texts / "test.csv").assign(label=label)
        frame.to_csv(tmp_path / "test.csv", index=False)
        data = loaded(composed(f"data.test={tmp_path / 'test.csv'}"))
        assert set(data.sets) == {"train", "val"}
        assert data.describe()["notes"] == "test has no labels and is left out"
    assert is_unlabelled(rows([-1, -1]))


def test_a_missing_column_is_named(composed, tmp_path):
    with pytest.raises(UserError, match=r"data.train=.*: no column txt; did you mean text\?"):
        loaded(composed("data.text=txt"))
    with pytest.raises(UserError, match=r"data.train=.*: no column mood"):
        loaded(composed("data.label=mood"))
    rows([0, 1]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"data.train=.*rows.parquet: no column txt"):
        loaded(composed("data=parquet", f"data.train={tmp_path / 'rows.parquet'}", "data.text=txt"))


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_bad_row_is_counted_as_in_the_file_although_rows_are_held_out(composed, texts, tmp_path, column):
    frame = pandas.read_csv(texts / "train.csv")
    frame.loc[140, column] = "" if column == "label" else " "
    frame.to_csv(tmp_path / "rows.csv", index=False)
    more = [f"data.train={tmp_path / 'rows.csv'}", "data.validation=null", "data.validation_fraction=0.5"]
    with pytest.raises(UserError, match=r"data.train=.*rows.csv: row 141 \(line 142\)"):
        loaded(composed(*more))


def test_several_columns_of_text_are_joined(composed, texts, tmp_path):
    frame = pandas.read_csv(texts / "train.csv")
    joined = frame.assign(text=frame.text + " " + frame.other)
    joined.to_csv(tmp_path / "joined.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    given = loaded(composed(f"data.train={tmp_path / 'joined.csv'}"))
    own = loaded(composed("data.text=[text,other]"))
    stored = loaded(composed("data=parquet", f"data.train={tmp_path / 'rows.parquet'}", "data.text=[text,other]"))
    tokens = [data.token_sets["train"].buffer for data in (given, own)]
    np.testing.assert_array_equal(tokens[0].tokens, tokens[1].tokens)
    assert stored.splits["train"]["text"][:] == [text for text in joined.text if text in stored.splits["train"]["text"]]


def test_the_fingerprint_is_that_of_the_samples(composed, texts, tmp_path):
    def of(frame, *more, name="train.csv"):
        path = tmp_path / name
        frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
        return loaded(composed(f"data.train={path}", *more)).fingerprint()

    frame = pandas.read_csv(texts / "train.csv")
    first = loaded(composed()).fingerprint()
    assert of(frame) == first
    assert of(frame, name="other.csv") == first
    no_others = ["data.validation=null", "data.test=null"]
    assert of(frame, *no_others) == of(frame, "data=parquet", *no_others, name="rows.parquet")
    rotated = frame.assign(label=frame.label.map({"bad": "fair", "fair": "good", "good": "bad"}))
    renamed = frame.assign(label=frame.label.map({"bad": "BAD", "fair": "fair", "good": "good"}))
    changed = frame.assign(text=frame.text.where(frame.index != 7, "the film was sad"))
    others = [of(rotated), of(changed), of(frame.iloc[:-1]), of(frame, "data.test=null")]
    others.append(of(renamed, *no_others))
    assert len({first, *others}) == 6


def test_a_run_keeps_its_labels_and_vocabulary(composed, texts, tmp_path):
    """Although the training file now has other texts and labels; and evaluation does not read it."""
    words = ["model=bert_tiny", "model.vocab_size=200", "data.max_length=40"]
    first = loaded(composed(*words))
    first.write_input_spec(tmp_path)
    again = build_data(composed(*words, f"data.train={tmp_path / 'none.csv'}"))
    again.read_input_spec(tmp_path)
    again.load(torch.device("cpu"))
    assert again.labels.names == first.labels.names
    assert again.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    np.testing.assert_array_equal(again.token_sets["test"].labels, first.token_sets["test"].labels)
    np.testing.assert_array_equal(again.token_sets["test"].buffer.tokens, first.token_sets["test"].buffer.tokens)
    with pytest.raises(UserError, match=r"data.train=.*none.csv: cannot be read"):
        again.sets["train"]
    resumed = build_data(composed(*words))
    resumed.read_input_spec(tmp_path)
    resumed.load(torch.device("cpu"))
    assert resumed.fingerprint() == first.fingerprint()
    assert resumed.describe()["train"] == first.describe()["train"]


def test_labels_that_a_run_does_not_know_are_named(composed, texts, tmp_path):
    loaded(composed()).write_input_spec(tmp_path)
    frame = pandas.read_csv(texts / "test.csv")
    frame.loc[3, "label"] = "awful"
    frame.to_csv(tmp_path / "test.csv", index=False)
    data = build_data(composed(f"data.test={tmp_path / 'test.csv'}"))
    data.read_input_spec(tmp_path)
    with pytest.raises(UserError, match=r"data.test=.*: row 4 \(line 5\): data.label=label: unknown label awful"):
        data.load(torch.device("cpu"))


def test_a_damaged_input_spec_is_an_error(composed, tmp_path):
    with pytest.raises(UserError, match=r"no readable inputs.json"):
        InputSpec.read(tmp_path)
    loaded(composed()).write_input_spec(tmp_path)
    text = (tmp_path / "inputs.json").read_text()
    for damaged in (text[:50], text.replace('"max_length": 40', '"max_length": "x"'), "[]"):
        (tmp_path / "inputs.json").write_text(damaged)
        with pytest.raises(UserError, match=r"inputs.json: damaged"):
            InputSpec.read(tmp_path)
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(UserError, match=r"data.max_length=30: the run was trained with 40"):
        build_data(composed("data.max_length=30")).read_input_spec(tmp_path)


def test_a_model_from_scratch_learns_its_vocabulary():
    data = loaded(typed(compose_mapping(["task=bert"]))[0])
    assert len(data.tokenizer) <= 4000
    assert data.tokenizer.tokenize("where is my parcel") == ["where", "is", "my", "parcel"]


def test_the_same_texts_give_the_same_vocabulary():
    texts = [text for text, _ in intent_rows({"train": 500})["train"]]
    assert learn_vocabulary(texts, 1500) == learn_vocabulary(list(reversed(texts)), 1500)


def chinese_texts(num_texts, num_characters):
    rng = np.random.default_rng(0)
    characters = [chr(0x4E00 + number) for number in range(num_characters)]
    return ["".join(rng.choice(characters, 20)) + " price 12" for _ in range(num_texts)]


@pytest.mark.parametrize("vocab_size", [100, 400, 4000])
def test_a_vocabulary_of_chinese_keeps_its_size_and_has_no_unused_pieces(vocab_size):
    texts = chinese_texts(600, 1000)
    vocabulary = learn_vocabulary(texts, vocab_size)
    assert len(vocabulary) <= vocab_size
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    tokenizer = BertTokenizer(vocab=vocabulary)
    used = {token for text in texts for token in tokenizer.tokenize(text)}
    pieces = set(vocabulary) - set(tokenizer.all_special_tokens)
    assert not {piece for piece in pieces if piece.startswith("##") and ord(piece[2]) > 0x4E00}
    assert sum(ord(piece[0]) > 0x4E00 for piece in pieces) == sum(ord(piece[0]) > 0x4E00 for piece in used)
    assert ("[UNK]" in used) == (vocab_size < 1000)


def test_many_unknown_tokens_are_a_warning_with_a_hint(composed, tmp_path, capsys):
    labels = ["a", "b"] * 50
    pandas.DataFrame({"text": chinese_texts(100, 1000), "label": labels}).to_csv(tmp_path / "rows.csv", index=False)
    more = [f"data.train={tmp_path / 'rows.csv'}", "data.validation=null", "data.test=null"]
    data = loaded(composed(*more))
    message = capsys.readouterr().err
    share = data.token_sets["train"].buffer.unknown_share
    assert share > 0.5
    assert f"note: {share:.1%} of the training tokens are unknown to model=bert_base; use model=bert_tiny" in message
    assert f"{share:.1%} unknown" in data.describe()["train"]
    loaded(composed(*more, "model=bert_tiny"))
    assert "unknown" not in capsys.readouterr().err


def test_truncated_texts_are_counted_on_the_terminal(composed, capsys):
    data = loaded(composed("data.max_length=8"))
    buffer = data.token_sets["train"].buffer
    assert buffer.lengths.max() == 8
    assert f"note: {buffer.num_truncated / 150:.1%} of the train texts are cut to data.max_length=8 tokens" in (
        capsys.readouterr().err
    )


def test_many_labels_are_abbreviated(composed, tmp_path):
    names = [f"class {number}" for number in range(20)]
    pandas.DataFrame({"text": ["the film"] * 100, "label": names * 5}).to_csv(tmp_path / "rows.csv", index=False)
    data = loaded(composed(f"data.train={tmp_path / 'rows.csv'}", "data.validation=null", "data.test=null"))
    assert re.fullmatch(
        r"20, found in the training split: (class \d+, ){11}class \d+ and 8 more", data.describe()["labels"]
    )
    data.write_input_spec(tmp_path)
    assert InputSpec.read(tmp_path).label_names == sorted(names)

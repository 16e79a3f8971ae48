"""The verb predict, on the directory of a run of which nothing else is left."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from bert_by_hand import by_hand

from trainer.cli import main

LABELS = ["bad", "fair", "good"]


@pytest.fixture
def predict(run_alone, in_directory):
    """Predict with further words. Returns: the exit code."""
    return lambda *more: main(["predict", f"run={run_alone}", *more])


def written(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return f"input={name}"


def read(name):
    with Path(name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_rank_and_two_predict_the_same_bytes(predict, run_alone, texts):
    """Neither the training files nor the encoder exist any more."""
    source = f"input={texts / 'test.csv'}"
    for devices in (1, 2):
        assert predict(source, f"output={devices}.csv", f"trainer.devices={devices}") == 0
    assert Path("1.csv").read_bytes() == Path("2.csv").read_bytes()
    given, rows = read(texts / "test.csv"), read("1.csv")
    assert [{name: row[name] for name in given[0]} for row in rows] == given
    expected = by_hand(run_alone, [row["text"] for row in given]).softmax(-1).numpy()
    found = [[float(row[f"probability_{name}"]) for name in LABELS] for row in rows]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert [row["predicted_label"] for row in rows] == [LABELS[i] for i in np.argmax(found, axis=1)]
    assert not (run_alone / "predictions.csv").exists()


def test_words_for_missing_values_are_texts(predict):
    words = ["NA", "null", "None", "NaN", "1.50", "007"]
    source = written("rows.csv", "id,text\n" + "".join(f"0{i},{word}\n" for i, word in enumerate(words)))
    assert predict(source, "output=out.csv") == 0
    rows = read("out.csv")
    assert [row["text"] for row in rows] == words
    assert [row["id"] for row in rows] == [f"0{i}" for i in range(len(words))]
    assert all(row["predicted_label"] in LABELS for row in rows)


BAD = "text\tid\nthe film\t1\n\t2\n  \t3\na fine day\t4\n"


def test_bad_rows_stop_or_are_left_out_or_stay_without_a_prediction(predict, capsys):
    source = written("rows.tsv", BAD)
    assert predict(source, "output=out.csv") == 2
    message = capsys.readouterr().err
    assert "input=rows.tsv: row 2 (line 3): the text is empty" in message
    assert "on_bad_row=skip" in message
    assert predict(source, "output=skip.csv", "on_bad_row=skip") == 0
    assert [row["id"] for row in read("skip.csv")] == ["1", "4"]
    message = capsys.readouterr().err
    assert "note: 2 rows left out: row 2 (line 3): the text is empty; row 3 (line 4): the text is empty" in message
    assert predict(source, "output=null.csv", "on_bad_row=null") == 0
    rows = read("null.csv")
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["predicted_label"] in LABELS for row in rows] == [True, False, False, True]
    assert rows[1]["predicted_label"] == rows[1]["probability_bad"] == ""
    assert rows[0] == read("skip.csv")[0]
    assert "2 rows without a prediction" in capsys.readouterr().err


def test_a_number_is_no_text_in_json(predict, capsys):
    rows = [{"text": "the film", "x": {"y": [1]}}, {"text": 5}, {"x": None}, {"text": None}]
    source = written("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert predict(source) == 2
    assert "row 2 (line 2): the text is of type int" in capsys.readouterr().err
    for output in ("out.jsonl", "out.json"):
        assert predict(source, "on_bad_row=null", f"output={output}") == 0
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert json.loads(Path("out.json").read_text()) == found
    assert [{name: row[name] for name in given} for row, given in zip(found, rows, strict=True)] == rows
    assert [row["predicted_label"] is None for row in found] == [False, True, True, True]


def test_every_row_may_be_bad(predict):
    assert (
        predict(written("rows.csv", "text,id\n,1\n,2\n"), "on_bad_row=null", "output=out.csv", "trainer.devices=1") == 0
    )
    assert [row["predicted_label"] for row in read("out.csv")] == ["", ""]


def test_truncated_and_unknown_tokens_are_counted(predict, capsys):
    texts = ["the film " * 2222, "the film", "xyz film", "a day"]
    source = written("rows.csv", "text,id\n" + "".join(f"{text},{i}\n" for i, text in enumerate(texts)))
    assert predict(source, "output=out.csv") == 0
    message = capsys.readouterr().err
    assert "note: 25.0% of the texts are cut to 40 tokens (in training 0.0%)" in message
    assert f"note: {1 / (40 + 4 + 4 + 4):.1%} of the tokens are unknown to the vocabulary (in training 0.0%)" in message


def test_a_missing_or_clashing_column_is_named(predict, capsys):
    assert predict(written("rows.csv", "txt,id\na,1\n")) == 2
    assert "input=rows.csv: no column text; did you mean txt?" in capsys.readouterr().err
    assert predict(written("rows.jsonl", '{"txt": "a"}\n')) == 2
    assert "input=rows.jsonl: no column text" in capsys.readouterr().err
    assert predict(written("rows.csv", "text,probability\na,1\n")) == 2
    assert "has a column probability, which predict writes" in capsys.readouterr().err


def test_the_input_is_never_overwritten(predict, run_alone, capsys):
    source = written("rows.csv", "text,id\nthe film,1\n")
    assert predict(source, "output=rows.csv") == 2
    assert "output=rows.csv: is the input" in capsys.readouterr().err
    own = run_alone / "predictions.csv"
    assert predict(source) == 0
    assert len(read(own)) == 1
    pandas.read_csv(own).loc[:, ["text", "id"]].to_csv(own, index=False)
    assert predict(f"input={own}") == 2
    assert "predictions.csv: is the input" in capsys.readouterr().err
    own.unlink()


def test_other_formats(predict):
    content = "id;text\n1;the film\n2;a fine day\n"
    assert predict(written("rows.csv.gz", gzip.compress(content.encode())), "output=a.csv") == 0
    assert predict(written("wide.csv", content.encode("utf-16")), "encoding=utf-16", "output=b.csv") == 0
    assert read("a.csv") == read("b.csv")
    frame = pandas.DataFrame({"text": ["the film", "a fine day"], "id": np.array([1, 2], dtype=np.int16)})
    frame.to_parquet("rows.parquet")
    assert predict("input=rows.parquet", "output=c.parquet") == 0
    found = pandas.read_parquet("c.parquet")
    assert found.id.dtype == np.int16
    assert found.predicted_label.tolist() == [row["predicted_label"] for row in read("a.csv")]
    assert predict(written("comma.csv", "id,text\n1,the film\n"), "delimiter=,", "output=d.csv") == 0
    assert predict(written("comma.csv", "id,text\n1,the film\n"), "delimiter=semicolon", "output=d.csv") == 2


def test_what_has_no_effect_is_refused(predict, capsys):
    source = written("rows.csv", "text,id\na,1\n")
    assert predict(source, "data.max_length=10") == 2
    assert "data.max_length=10: predict would ignore it" in capsys.readouterr().err
    assert predict(source, "on_bad_row=ignore") == 2
    assert "on_bad_row=ignore" in capsys.readouterr().err
    assert predict(source, "inputs=a") == 2
    assert "did you mean input?" in capsys.readouterr().err


def test_evaluation_needs_no_training_file(words, texts, in_directory):
    """And reports the same numbers as training although the training file is now another one."""
    train = in_directory / "train.csv"
    train.write_bytes((texts / "train.csv").read_bytes())
    assert main([*words, f"data.train={train}", "model.num_layers=1", "trainer.max_epochs=1", "run.name=kept"]) == 0
    run_dir = in_directory / "outputs/bert/kept"
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    tested = {name: value for line in lines for name, value in line.items() if name.startswith("test/")}
    tested = {name: value for name, value in tested.items() if not name.endswith("_baseline")}
    for change in (lambda: train.write_text("text,label\na,x\nb,y\n"), train.unlink):
        change()
        assert main(["eval", f"run={run_dir}"]) == 0
        found = json.loads((run_dir / "eval.json").read_text())
        assert {name: found[name] for name in tested} == pytest.approx(tested)

"""A trained model from its run directory alone."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from bert_by_hand import by_hand
from safetensors.torch import load_file, save_file

import trainer
from tasks.bert.config import TASK
from tasks.bert.inference import BertInference
from trainer.errors import UserError
from trainer.run.metrics_file import read_metrics
from trainer.run.stored_config import read_stored_config

CPU = torch.device("cpu")
TEXTS = ["the film was bright", "a dull day in the town with them all and we saw it", "plain"]


def loaded(run_dir) -> BertInference:
    inference = TASK.load_inference(read_stored_config(run_dir).config, run_dir, CPU)
    assert isinstance(inference, BertInference)
    return inference


def test_results_are_those_of_the_model_called_by_hand(run_alone):
    results = loaded(run_alone)(TEXTS)
    expected = by_hand(run_alone, TEXTS).softmax(-1).numpy()
    found = [[row["probabilities"][name] for name in ("bad", "fair", "good")] for row in results]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert [row["label"] for row in results] == [["bad", "fair", "good"][i] for i in expected.argmax(1)]
    assert [row["probability"] for row in results] == [max(row) for row in found]
    assert loaded(run_alone)([{"text": text, "other": 1} for text in TEXTS]) == results
    assert json.dumps(results)


def test_logits_are_those_of_eval(run_alone, texts):
    """Of the validation set: their loss and accuracy are what the run has logged for its best weights."""
    with (texts / "validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    model = trainer.load(run_alone, device="cpu")
    logits = model.outputs(rows)
    torch.testing.assert_close(logits, by_hand(run_alone, [row["text"] for row in rows]), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits, model.outputs([row["text"] for row in rows]))
    targets = torch.tensor([["bad", "fair", "good"].index(row["label"]) for row in rows])
    logged = [line for line in read_metrics(run_alone) if "val/loss" in line]
    best = max(logged, key=lambda line: line["val/accuracy"])
    loss = torch.nn.functional.cross_entropy(logits.double(), targets).item()
    assert loss == pytest.approx(best["val/loss"], rel=1e-5)
    assert (logits.argmax(1) == targets).double().mean().item() == pytest.approx(best["val/accuracy"])


def test_one_text_is_a_list_of_one(run_alone):
    model = loaded(run_alone)
    assert model(TEXTS[0]) == model(TEXTS[:1]) == model({"text": TEXTS[0]})
    assert model(pd.Series(TEXTS)) == model(TEXTS)


def test_the_network_takes_tensors_by_name(run_alone):
    inference = loaded(run_alone)
    inputs = inference.preprocess(TEXTS)
    assert set(inputs) == {"input_ids", "attention_mask"}
    torch.testing.assert_close(inference.network(**inputs), by_hand(run_alone, TEXTS))
    assert not inference.network.training
    examples = inference.example_inputs()
    assert all(len(tensor) == 2 for tensor in examples.tensors.values())
    assert dict(examples.dynamic["input_ids"]) == {0: "batch", 1: "length"}
    assert inference.network(**examples.tensors).shape == (2, 3)
    assert inference.metric == "accuracy"


def test_long_texts_are_cut_as_in_training(run_alone):
    inputs = loaded(run_alone).preprocess(["the film " * 100])
    assert inputs["input_ids"].shape == (1, 40)


@pytest.mark.parametrize("bad", ["", "  ", None, 5, ("a", "b")])
def test_a_bad_input_is_named(run_alone, bad):
    with pytest.raises(UserError, match="input 1: "):
        loaded(run_alone)(["fine", bad], batch_size=1)


def test_weights_that_are_missing_or_of_another_network_are_errors(run_alone, tmp_path):
    config = read_stored_config(run_alone).config
    for name in ("inputs.json", "config.yaml"):
        (tmp_path / name).write_bytes((run_alone / name).read_bytes())
    shutil.copytree(run_alone / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(UserError, match=r"no model.safetensors yet"):
        BertInference.load(config, tmp_path, CPU)
    weights = load_file(run_alone / "model.safetensors")
    lacking = {name: tensor for name, tensor in weights.items() if "classifier" not in name}
    narrow = {name: tensor[:1].clone() for name, tensor in weights.items()}
    for damaged, message in ((lacking, "are not those of"), (narrow, "damaged: ")):
        save_file(damaged, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=message):
            BertInference.load(config, tmp_path, CPU)
    (tmp_path / "model.safetensors").write_bytes((run_alone / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged: "):
        BertInference.load(config, tmp_path, CPU)


def test_scores_are_in_the_units_of_training(run_alone, tmp_path):
    """Of a run that has standardised its targets."""
    spec = json.loads((run_alone / "inputs.json").read_text())
    spec |= {"kind": "regression", "label_names": None, "class_counts": None}
    spec["network"] |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    weights = load_file(run_alone / "model.safetensors")
    weights["model.classifier.weight"] = weights["model.classifier.weight"][:1].clone()
    weights["model.classifier.bias"] = weights["model.classifier.bias"][:1].clone()
    shutil.copy(run_alone / "config.yaml", tmp_path)
    shutil.copytree(run_alone / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "inputs.json").write_text(json.dumps(spec))
    save_file(weights, tmp_path / "model.safetensors")
    plain = np.array([row["score"] for row in loaded(tmp_path)(TEXTS)])
    save_file(
        weights | {"target_mean": torch.tensor(3.0), "target_std": torch.tensor(2.0)}, tmp_path / "model.safetensors"
    )
    np.testing.assert_allclose([row["score"] for row in loaded(tmp_path)(TEXTS)], plain * 2 + 3, atol=1e-5)
    np.testing.assert_allclose(plain, by_hand(tmp_path, TEXTS)[:, 0], atol=2e-6)

"""A trained model from its run directory alone."""

import json

import numpy as np
import pytest
import torch
from bert_by_hand import by_hand
from safetensors.torch import load_file, save_file
from warm import run_warm

from tasks.bert.config import TASK
from tasks.bert.inference import BertInference
from trainer.errors import UserError
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
    with pytest.raises(UserError, match="input 2: "):
        loaded(run_alone).preprocess(["fine", bad])


def test_weights_that_are_missing_or_of_another_network_are_errors(run_alone, tmp_path):
    config = read_stored_config(run_alone).config
    for name in ("inputs.json", "config.yaml"):
        (tmp_path / name).write_bytes((run_alone / name).read_bytes())
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
    for name in ("config.yaml", "tokenizer"):
        (tmp_path / name).symlink_to(run_alone / name)
    (tmp_path / "inputs.json").write_text(json.dumps(spec))
    save_file(weights, tmp_path / "model.safetensors")
    plain = np.array([row["score"] for row in loaded(tmp_path)(TEXTS)])
    save_file(
        weights | {"target_mean": torch.tensor(3.0), "target_std": torch.tensor(2.0)}, tmp_path / "model.safetensors"
    )
    np.testing.assert_allclose([row["score"] for row in loaded(tmp_path)(TEXTS)], plain * 2 + 3, atol=1e-5)
    np.testing.assert_allclose(plain, by_hand(tmp_path, TEXTS)[:, 0], atol=2e-6)


def test_nothing_of_lightning_is_constructed(run_alone, tmp_path):
    code = (
        "import torch; from pathlib import Path; from pytorch_lightning import LightningModule, Trainer\n"
        "def refuse(*a, **k): raise AssertionError\n"
        "LightningModule.__init__ = Trainer.__init__ = refuse\n"
        "from tasks.bert.config import TASK; from trainer.run.stored_config import read_stored_config\n"
        f"run = Path({str(run_alone)!r})\n"
        "print(TASK.load_inference(read_stored_config(run).config, run, torch.device('cpu'))(['the film'])[0])"
    )
    (tmp_path / "infer.py").write_text(code)
    done = run_warm(["infer.py"], cwd=tmp_path)
    assert "probabilities" in done.stdout, done.stderr

"""The directory hf/ of a run: transformers alone loads it and gives the run's logits."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    DistilBertConfig,
    ModernBertConfig,
    RobertaConfig,
)

from tasks.bert.config import TASK
from tasks.bert.data import build_data
from tasks.bert.huggingface import write_directory
from tasks.bert.module import build_module
from trainer.run.stored_config import read_stored_config

TEXTS = ["the film was bright", "a dull day in the town with them all and we saw it", "plain", "we saw the film " * 30]
PAIRS = [("the film was bright", "and sad"), ("a dull day", "in the town with them all " * 30)]
ALONE = """
import json, sys
sys.modules["trainer"] = sys.modules["tasks"] = None
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
logits = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits
print(json.dumps([logits.tolist(), model.config.id2label, model.config.label2id, model.config.problem_type]))
"""


def loaded_logits(folder, inputs):
    """Logits of texts, or of pairs of texts, with what transformers loads."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    columns = [inputs] if isinstance(inputs[0], str) else [list(column) for column in zip(*inputs, strict=True)]
    with torch.no_grad():
        return model.float()(**tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")).logits


def test_a_run_is_loaded_without_the_project(run_alone, tmp_path):
    inference = TASK.load_inference(read_stored_config(run_alone).config, run_alone, torch.device("cpu"))
    expected = inference.outputs(TEXTS)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, str(run_alone / "hf"), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    logits, names, numbers, problem = json.loads(done.stdout)
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=1e-6)
    assert names == {"0": "bad", "1": "fair", "2": "good"} and numbers == {"bad": 0, "fair": 1, "good": 2}
    assert problem == "single_label_classification"
    assert not list(run_alone.glob(".hf"))


def written(config, folder):
    """A module with weights that are all random, and the directory of its results."""
    data = build_data(config)
    data.load(torch.device("cpu"))
    module = build_module(config, data)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    module.write_results(folder, module.state_dict())
    return data, module.eval()


def own_outputs(data, module, inputs):
    """Outputs as in evaluation, row by row."""
    rows = []
    columns = [inputs] if isinstance(inputs[0], str) else [list(column) for column in zip(*inputs, strict=True)]
    for row in zip(*columns, strict=True):
        encoded = data.tokenizer(*row, truncation=True, max_length=data.config.data.max_length, return_tensors="pt")
        if not module.takes_types:
            encoded.pop("token_type_ids", None)
        output = module.model(**encoded).logits.float()
        is_score = module.task.kind == "regression"
        rows.append(output * module.target_std + module.target_mean if is_score else output)
    return torch.cat(rows).detach()


CASES = {
    "a small model of one's own": ["model=bert_tiny", "model.hidden_size=16", "model.intermediate_size=32"],
    "scores": ["task.kind=regression", "data.label=score", "monitor.metric=val/loss", "monitor.mode=min"],
    "pairs": ["data.text_pair=other"],
}


@pytest.mark.parametrize("more", CASES.values(), ids=CASES.keys())
def test_logits_are_those_of_evaluation(composed, more, tmp_path):
    data, module = written(composed(*more), tmp_path)
    inputs = PAIRS if "data.text_pair=other" in more else TEXTS
    expected = own_outputs(data, module, inputs)
    found = loaded_logits(tmp_path / "hf", inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    is_score = module.task.kind == "regression"
    assert found.shape == (len(inputs), 1 if is_score else 3)
    assert config["problem_type"] == ("regression" if is_score else "single_label_classification")
    assert config["id2label"] == ({"0": "score"} if is_score else {"0": "bad", "1": "fair", "2": "good"})
    assert np.ptp(expected.numpy()) > 1e-3


def test_mean_pooling_has_no_directory_and_says_so(composed, tmp_path, capsys):
    written(composed("model.pooling=mean"), tmp_path)
    assert not (tmp_path / "hf").exists()
    (line,) = [line for line in capsys.readouterr().out.split("\n") if "hf/" in line]
    assert "not written" in line and "mean-pooled" in line


@pytest.mark.parametrize("kind", [DistilBertConfig, RobertaConfig, ModernBertConfig])
def test_scores_are_in_the_last_layer_of_other_architectures(kind, encoder, tmp_path):
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 60, "num_labels": 1, "pad_token_id": 0}
    if kind is DistilBertConfig:
        sizes = {"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "num_labels": 1}
    torch.manual_seed(0)
    network = AutoModelForSequenceClassification.from_config(kind(**sizes)).eval()
    moments = torch.tensor(3.5), torch.tensor(2.0)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    write_directory(tmp_path / "hf", network.config, network.state_dict(), tokenizer, 20, moments)
    ids = tokenizer(["the film was bright"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = network(input_ids=ids).logits * 2.0 + 3.5
        found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not isinstance(network, BertForSequenceClassification)

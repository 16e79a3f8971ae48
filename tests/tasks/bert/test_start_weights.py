"""init.from for BERT: the vocabulary goes with the weights, and only a new head is new."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from tasks.bert.data import build_data
from tasks.bert.models import announce
from tasks.bert.module import build_module
from trainer.checkpoint.initial import start_from_weights
from trainer.config.compose import compose_mapping, typed
from trainer.errors import UserError
from trainer.run.init_source import with_source

TINY = ["model=bert_tiny", "model.hidden_size=16", "model.intermediate_size=32", "model.max_positions=64"]


def built(config):
    data = build_data(config)
    data.load(torch.device("cpu"))
    return data, build_module(config, data)


def as_run(config, folder):
    """A run's directory without its training."""
    torch.manual_seed(1)
    data, module = built(config)
    folder.mkdir()
    data.write_input_spec(folder)
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, folder / "model.safetensors")
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    return folder


@pytest.fixture
def other_texts(tmp_path):
    """Words that the source has not seen, in two classes."""
    place = tmp_path / "other.csv"
    with place.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(40):
            writer.writerow([f"the {'quick' if number % 2 else 'lazy'} fox {number}", ("up", "down")[number % 2]])
    return [f"data.train={place}", "data.validation=null", "data.test=null"]


@pytest.fixture
def compose_tiny(words):
    """The configuration of a small model with a vocabulary of its own on the texts."""
    kept = [word for word in words if not word.startswith("model")]
    return lambda *more: typed(compose_mapping([*kept, *TINY, *more]))[0]


def test_the_vocabulary_of_the_source_goes_with_its_weights(compose_tiny, other_texts, tmp_path, capsys):
    source = as_run(compose_tiny(), tmp_path / "source")
    config, _ = with_source(compose_tiny(*other_texts, f"init.from={source}"), {"init": {}})
    data, module = built(config)
    facts = start_from_weights(config, module, torch.device("cpu"))
    assert data.tokenizer.get_vocab() == BertTokenizer.from_pretrained(source / "tokenizer").get_vocab()
    own, _ = built(compose_tiny(*other_texts))
    assert own.tokenizer.get_vocab() != data.tokenizer.get_vocab()
    weights, state = load_file(source / "model.safetensors"), module.state_dict()
    for name, tensor in weights.items():
        assert torch.equal(state[name], tensor) == ("classifier" not in name), name
    assert facts["new"] == ["model.classifier.weight", "model.classifier.bias"]
    assert state["model.classifier.weight"].shape == (2, 16)
    announce(module.built, config.model)
    assert "RANDOM" not in capsys.readouterr().err
    assert not module.describe()["starts_from_random_weights"]
    rates = {group["lr"] for group in module.parameter_groups("model") if "lr" in group}
    assert rates == {config.optimizer.lr, config.optimizer.lr * config.task.head_lr_scale}


def test_weights_whose_vocabulary_is_unknown_or_another_are_refused(compose_tiny, composed, run_alone, tmp_path):
    source = as_run(compose_tiny(), tmp_path / "source")
    alone = tmp_path / "alone.safetensors"
    (source / "model.safetensors").rename(alone)
    with pytest.raises(UserError, match=r"init.from=.*outside of a run(.|\n)*name the directory"):
        built(compose_tiny(f"init.from={alone}"))
    with pytest.raises(UserError, match="another vocabulary"):
        built(composed(f"init.from={source}"))
    data, module = built(composed(f"init.from={run_alone}", "init.strict=true"))
    assert start_from_weights(data.config, module, torch.device("cpu"))["new"] == []

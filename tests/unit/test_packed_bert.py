import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks.packed_bert import PackedTexts, attend_one_by_one, flash_attend, packed_logits
from trainer.data.texts.buffer import EncodedTexts, TokenBuffer, TokenSet

CONFIG = BertConfig(
    vocab_size=100,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
    max_position_embeddings=32,
    num_labels=3,
)


@pytest.fixture
def buffer():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, 12)
    return TokenBuffer.from_chunks(
        [EncodedTexts([rng.integers(1, 100, n).tolist() for n in lengths], lengths.tolist(), 0)]
    )


def padded_logits(model, buffer, indices, device):
    batch = TokenSet(buffer, np.zeros(len(buffer), np.int64), 0, 32).gather(indices, len(indices), 0).to(device)
    model.set_attn_implementation("sdpa")
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask()).logits


def test_packed_and_padded_texts_have_the_same_logits_and_gradients(buffer):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIG).eval()
    indices, cpu = np.array([7, 0, 11, 3]), torch.device("cpu")
    expected = padded_logits(model, buffer, indices, cpu)
    found = packed_logits(model, PackedTexts.of(buffer, indices, cpu), attend_one_by_one)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), model.bert.encoder.parameters()),
        torch.autograd.grad(expected.square().sum(), model.bert.encoder.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_the_kernel_and_the_loop_have_the_same_logits(buffer):
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = AutoModelForSequenceClassification.from_config(CONFIG).to(device, torch.bfloat16).eval()
    texts = PackedTexts.of(buffer, np.arange(12), device)
    with torch.no_grad():
        found, expected = (packed_logits(model, texts, attend) for attend in (flash_attend, attend_one_by_one))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)

from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    root_mean_squared_error,
)
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, BertConfig, ModernBertConfig

from tasks.bert.baseline import constant_metrics, tfidf_metrics
from tasks.bert.data import build_data
from tasks.bert.flops import EncoderFlops
from tasks.bert.metrics import MAX_LABEL, ClassMetrics, ScoreMetrics, named, short_name, write_confusion
from tasks.bert.models import freeze
from tasks.bert.module import build_module
from trainer.data.batch import StepBatch
from trainer.errors import UserError


def prepared(config):
    data = build_data(config)
    data.load(torch.device("cpu"))
    module = build_module(config, data)
    module.setup("fit")
    return data, module


def step_of(data, sizes, num_valid=None):
    """A global batch of micro-batches of these sizes."""
    starts = np.concatenate([[0], np.cumsum(sizes)])
    micros = [
        data.sets["train"].gather(np.arange(a, b), b - a if num_valid is None else num_valid, 0)
        for a, b in pairwise(starts)
    ]
    return StepBatch(micros, sum(sizes))  # where a rank has only fillers, other ranks have the samples


def gradients(module, batch):
    """What one step adds up, and the sums that it logs."""
    module.optimize = lambda network: None
    module.manual_backward = lambda loss: loss.backward()
    one_rank = SimpleNamespace(accumulating=lambda network, last: nullcontext())
    module._trainer = SimpleNamespace(world_size=1, strategy=one_rank)
    module.zero_grad()
    sums = module.training_step(batch, 0)
    return torch.cat([p.grad.flatten() for p in module.model.parameters()]), sums


@pytest.mark.parametrize("weights", ["null", "balanced", "[1.0,2.0,5.0]"])
def test_loss_is_that_of_the_global_batch_however_it_is_cut(composed, weights):
    data, module = prepared(composed("model.dropout=0.0", f"task.class_weights={weights}"))
    batch = step_of(data, [12])
    micro = batch.micro_batches[0]
    found, sums = gradients(module, batch)
    outputs = module.model(input_ids=micro.input_ids, attention_mask=micro.attention_mask()).logits
    expected_loss = F.cross_entropy(outputs, micro.labels, weight=module.class_weights)
    module.zero_grad()
    expected_loss.backward()
    expected = torch.cat([p.grad.flatten() for p in module.model.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert sums["loss"].item() / 12 == pytest.approx(expected_loss.item(), rel=1e-6)
    cut, cut_sums = gradients(module, step_of(data, [5, 1, 6]))
    torch.testing.assert_close(cut, expected, rtol=1e-4, atol=1e-7)
    assert cut_sums["loss"].item() == pytest.approx(sums["loss"].item(), rel=1e-5)


def test_balanced_weights_are_those_of_scikit_learn(composed):
    from sklearn.utils.class_weight import compute_class_weight

    data, module = prepared(composed("task.class_weights=balanced"))
    labels = data.sets["train"].labels
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(module.class_weights, expected, rtol=1e-6)
    with pytest.raises(UserError, match="the data has 3 classes"):
        prepared(composed("task.class_weights=[1.0,2.0]"))


def test_fillers_count_nowhere(composed):
    data, module = prepared(composed("model.dropout=0.0"))
    found, sums = gradients(module, step_of(data, [8], num_valid=0))
    assert not found.any()
    assert all(value.item() == 0 for value in sums.values())


def test_counted_tokens_are_the_real_ones(composed):
    data, module = prepared(composed())
    batch = step_of(data, [6, 6])
    _, sums = gradients(module, batch)
    lengths = data.sets["train"].buffer.lengths[:12]
    widths = [lengths[:6].max()] * 6 + [lengths[6:].max()] * 6
    assert sums["num_tokens"].item() == lengths.sum()
    assert sums["num_padded_tokens"].item() == sum(widths)
    assert sums["padding_fraction"].item() == pytest.approx((1 - lengths / np.array(widths)).sum(), rel=1e-6)
    assert sums["num_flops"].item() == module.flops(torch.from_numpy(lengths)).item()


def test_regression_learns_standardised_scores(composed):
    """With scores far from 0, whose scale the network never sees."""
    data, module = prepared(composed("task.kind=regression", "data.label=score", "model.dropout=0.0"))
    labels = data.token_sets["train"].labels
    labels[:] = labels * 50 + 300
    module = build_module(module.config, data)
    module.setup("fit")
    mean, std = np.mean(labels, dtype=np.float64), np.std(labels, dtype=np.float64)
    saved = module.state_dict()
    assert saved["target_mean"].item() == pytest.approx(mean, rel=1e-6)
    assert saved["target_std"].item() == pytest.approx(std, rel=1e-6)
    batch = step_of(data, [10])
    micro = batch.micro_batches[0]
    _, sums = gradients(module, batch)
    scores = module.model(input_ids=micro.input_ids, attention_mask=micro.attention_mask()).logits[:, 0]
    targets = torch.from_numpy((labels[:10] - mean) / std)
    assert sums["loss"].item() == pytest.approx(((scores - targets) ** 2).sum().item(), rel=1e-4)
    outputs = module.outputs(module.model, micro)[:, 0]
    torch.testing.assert_close(outputs, scores * float(std) + float(mean))
    assert module.model.config.num_labels == 1


def test_what_the_training_labels_decide_is_saved_with_the_weights(composed):
    """So that a run is evaluated and applied without its training data."""
    for words, names in (
        (["task.kind=regression", "data.label=score"], ["target_mean", "target_std"]),
        (["task.class_weights=balanced"], ["class_weights"]),
    ):
        data, module = prepared(composed(*words))
        saved = module.state_dict()
        del data.token_sets["train"]
        again = build_module(module.config, data)
        again.load_state_dict(saved)
        for name in names:
            assert torch.equal(getattr(again, name), getattr(module, name))
            assert name in saved


def test_equal_scores_are_refused(composed):
    data, module = prepared(composed("task.kind=regression", "data.label=score"))
    data.token_sets["train"].labels[:] = 2.5
    with pytest.raises(UserError, match=r"data.label=score: all scores of the training split are 2.5"):
        build_module(module.config, data)


def test_pairs_reach_the_model_with_their_types(composed):
    data, module = prepared(composed("data.text_pair=other", "model.dropout=0.0"))
    micro = step_of(data, [5]).micro_batches[0]
    types = micro.token_type_ids()
    assert 0 < types.sum() < micro.lengths.sum()
    expected = module.model(
        input_ids=micro.input_ids, attention_mask=micro.attention_mask(), token_type_ids=types
    ).logits
    assert torch.equal(module.outputs(module.model, micro), expected)
    without = module.model(input_ids=micro.input_ids, attention_mask=micro.attention_mask()).logits
    assert not torch.equal(without, expected)


def rates_by_name(module):
    names = {id(p): name for name, p in module.model.named_parameters()}
    found = {}
    for group in module.parameter_groups("model"):
        for p in group["params"]:
            rate, decay = group.get("lr", module.config.optimizer.lr), group.get("weight_decay", "decays")
            assert names[id(p)] not in found
            found[names[id(p)]] = (rate, decay)
    return found


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_biases_and_norms_do_not_decay_and_learning_rates_fall_with_depth(composed, decay, scale):
    words = [f"task.layer_lr_decay={decay}", f"task.head_lr_scale={scale}", "optimizer.lr=0.01"]
    _, module = prepared(composed(*words))
    found = rates_by_name(module)
    assert found.keys() == dict(module.model.named_parameters()).keys()
    for name, (rate, weight_decay) in found.items():
        exempt = name.endswith(".bias") or "LayerNorm" in name
        assert (weight_decay == 0.0) == exempt
        below = 4 if "embeddings" in name else 3 - int(name.split(".")[3]) if ".layer." in name else 0
        assert rate == pytest.approx(0.01 * decay**below * (scale if name.startswith("classifier") else 1.0))


def test_random_weights_have_one_learning_rate(composed):
    _, module = prepared(composed("model.pretrained=false", "task.head_lr_scale=8.0", "optimizer.lr=0.01"))
    assert {rate for rate, _ in rates_by_name(module).values()} == {0.01}


def test_the_logged_learning_rate_is_that_of_the_encoder(composed):
    _, module = prepared(composed("task.head_lr_scale=8.0", "optimizer.lr=0.01"))
    assert module.parameter_groups("model")[0]["lr"] == 0.01


def test_frozen_parameters_have_no_group(composed):
    words = ["task.freeze_embeddings=true", "task.freeze_layers=2"]
    _, module = prepared(composed(*words, "task.layer_lr_decay=0.9"))
    assert {name for name in rates_by_name(module) if "embeddings" in name or "layer.0" in name} == set()
    assert any("layer.2" in name for name in rates_by_name(module))
    with pytest.raises(UserError, match="the model has 3 layers"):
        prepared(composed("task.freeze_embeddings=true", "task.freeze_layers=4"))


# ---- FLOPs

SMALL = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT = BertConfig(**SMALL, intermediate_size=256)
SPECIAL = {f"{name}_token_id": number for number, name in enumerate(["pad", "bos", "eos", "cls", "sep"])}
MODERN = ModernBertConfig(**SMALL, intermediate_size=96, local_attention=512, **SPECIAL)


@pytest.mark.parametrize("config", [BERT, MODERN], ids=["bert", "modernbert"])
def test_flops_match_those_that_torch_counts(config):
    config._attn_implementation = "eager"  # whose matrix products the counter sees on the CPU
    model = AutoModelForSequenceClassification.from_config(config)
    ids = torch.randint(5, 100, (4, 96))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    expected = EncoderFlops.of(model)(torch.full((4,), 96)).item()
    # The head, the pooler and the first layer's missing gradient of its input are in the count and not in the formula.
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.01)


SHIPPED = {
    "bert_tiny": BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512),
    "minilm": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "bert_base": BertConfig(),
    "bert_large": BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "modernbert": ModernBertConfig(),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_flops_of_the_shipped_sizes_are_those_that_torch_counts(name):
    """On the meta device: nothing is computed. ModernBERT's local attention is as long as these texts."""
    config = SHIPPED[name]
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
        ids = torch.ones(2, 64, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids).logits.sum().backward()
    assert EncoderFlops.of(model)(torch.full((2,), 64)).item() == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_flops_of_bert_are_the_published_formula():
    model = AutoModelForSequenceClassification.from_config(BERT)
    s, h, layers = 50, 64, 3
    by_formula = 3 * layers * (24 * s * h**2 + 4 * s**2 * h)
    assert EncoderFlops.of(model)(torch.tensor([s])).item() == by_formula
    freeze(model, embeddings=True, num_layers=2)
    assert EncoderFlops.of(model)(torch.tensor([s])).item() == by_formula / 3 / 3 * (1 + 1 + 3)


def test_local_attention_costs_no_more_than_its_window():
    config = ModernBertConfig(**SMALL, intermediate_size=96, local_attention=16, **SPECIAL)
    model = AutoModelForSequenceClassification.from_config(config)
    flops = EncoderFlops.of(model)
    local = config.layer_types.count("sliding_attention")
    assert 0 < local < 3
    dense = 2 * sum(p.numel() for layer in model.model.layers for p in layer.parameters() if p.ndim == 2)
    expected = 3 * (dense * 40 + 4 * 64 * 40 * ((3 - local) * 40 + local * 16))
    assert flops(torch.tensor([40])).item() == expected


# ---- metrics


def test_class_metrics_are_those_of_scikit_learn():
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(300, 4, generator=rng), torch.randint(0, 4, (300,), generator=rng)
    metrics = ClassMetrics(5)  # one class never occurs
    for part in (slice(0, 100), slice(100, 100), slice(100, 300)):
        outputs = torch.cat([logits[part], torch.full((len(logits[part]), 1), -9.0)], dim=1)
        loss = F.cross_entropy(outputs, labels[part], reduction="sum")
        metrics.update(loss, torch.tensor(float(len(labels[part]))), outputs, labels[part])
    predicted, found = logits.argmax(1), metrics.compute()
    assert found["accuracy"].item() == pytest.approx(accuracy_score(labels, predicted))
    assert found["f1_macro"].item() == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert "f1" not in found
    assert found["mcc"].item() == pytest.approx(matthews_corrcoef(labels, predicted))
    np.testing.assert_array_equal(found["confusion"], confusion_matrix(labels, predicted, labels=range(5)))
    assert "confusion" not in named(found)


def test_two_classes_have_metrics_of_the_positive_class():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (300,), generator=rng).clamp(max=1)  # nine of ten are positive
    outputs = torch.randn(300, 2, generator=rng)
    metrics = ClassMetrics(2)
    for part in (slice(0, 100), slice(100, 300)):
        metrics.update(torch.tensor(1.0), torch.tensor(1.0), outputs[part], labels[part])
    found, predicted = metrics.compute(), outputs.argmax(1)
    for name, expected in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert found[name].item() == pytest.approx(expected(labels, predicted))
    assert found["accuracy"].item() == pytest.approx(accuracy_score(labels, predicted))
    assert found["f1_macro"].item() == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_score_metrics_are_those_of_scipy():
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 1, generator=rng)
    labels = scores[:, 0] + torch.randn(200, generator=rng)
    metrics = ScoreMetrics()
    for part in (slice(0, 150), slice(150, 200)):
        loss = F.mse_loss(scores[part, 0], labels[part], reduction="sum")
        metrics.update(loss, torch.tensor(float(len(labels[part]))), scores[part], labels[part])
    found = metrics.compute()
    assert found["loss"].item() == pytest.approx(F.mse_loss(scores[:, 0], labels).item(), rel=1e-5)
    assert found["rmse"].item() == pytest.approx(root_mean_squared_error(labels, scores[:, 0]), rel=1e-5)
    assert found["spearman"].item() == pytest.approx(spearmanr(scores[:, 0], labels).statistic, abs=1e-5)
    assert found["pearson"].item() == pytest.approx(pearsonr(scores[:, 0], labels).statistic, abs=1e-5)


def test_confusion_matrix_is_written_with_names(tmp_path):
    path = write_confusion(torch.tensor([[3, 1], [0, 2]]), ["bad", "good"], tmp_path / "samples", "confusion-test")
    assert path.is_file()
    lines = path.with_suffix(".csv").read_text().splitlines()
    assert lines == ["true \\ predicted,bad,good", "bad,3,1", "good,0,2"]


def test_long_label_lists_are_abbreviated_in_the_picture_only(tmp_path):
    names = [f"{number}-{'x' * 60}" for number in range(150)]
    path = write_confusion(torch.eye(150, dtype=torch.int64), names, tmp_path, "confusion-val")
    assert path.with_suffix(".csv").read_text().splitlines()[0].split(",")[1:] == names
    assert len(short_name(names[0])) == MAX_LABEL
    assert short_name("good") == "good"


# ---- baselines


def test_constant_baselines_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    train, labels = rng.integers(0, 3, 100), rng.integers(0, 3, 50)
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((100, 1)), train)
    assert constant_metrics(train, labels, "classification") == {
        "accuracy_baseline": pytest.approx(dummy.score(np.zeros((50, 1)), labels))
    }
    scores, others = rng.normal(7, 2, 100), rng.normal(6, 2, 50)
    mean = DummyRegressor().fit(np.zeros((100, 1)), scores).predict(np.zeros((50, 1)))
    assert constant_metrics(scores, others, "regression") == {
        "rmse_baseline": pytest.approx(root_mean_squared_error(others, mean))
    }


def test_tfidf_baseline_learns_words_and_their_order():
    texts = ["not good but bad", "not bad but good", "bad", "good"] * 10
    labels = np.array([0, 1, 0, 1] * 10)
    found = tfidf_metrics((texts, labels), {"val": (texts[:4], labels[:4])}, "classification")
    assert found == {"val/accuracy_tfidf": 1.0, "val/f1_macro_tfidf": 1.0}
    scores = labels * 2.0 + 5.0
    found = tfidf_metrics((texts, scores), {"test": (texts[:4], scores[:4])}, "regression")
    assert found["test/pearson_tfidf"] > 0.95
    assert found["test/rmse_tfidf"] < constant_metrics(scores, scores[:4], "regression")["rmse_baseline"] / 2

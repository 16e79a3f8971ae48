"""Whole runs, as typed on the command line."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tasks.bert.predict import predict_batches
from trainer.cli import main
from trainer.config.compose import compose_mapping
from trainer.data.texts.length_sampler import LengthGroupedSampler

SIZES = {"validation": 40, "test": 41}  # rows
NUM_STEPS, SEED, RATE = 50, 3, 0.005
RECIPE = [
    f"seed={SEED}",
    f"optimizer.lr={RATE}",
    "task.head_lr_scale=1.0",
    "scheduler.warmup_fraction=0.1",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
]


@pytest.fixture
def fit(words, in_directory):
    """Train with further words. Returns: (run directory, the lines of metrics.jsonl)."""

    def run(*more):
        assert main([*words, *more]) == 0
        newest = max(Path("outputs/bert").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        return newest.absolute(), [json.loads(line) for line in (newest / "metrics.jsonl").read_text().splitlines()]

    return run


def losses(lines):
    return np.array([line["train/loss"] for line in lines if "train/loss" in line])


def plain_loop(encoder: Path, train: Path):
    """transformers' own model in a loop by hand: no code of ours but the order of the samples.

    Returns: (loss of each step, the trained model).
    """
    frame = pandas.read_csv(train)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    names = sorted(set(frame.label))
    lengths = np.array([len(ids) for ids in tokenizer(frame.text.tolist())["input_ids"]])
    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3, dtype=torch.float32).train()
    exempt = ("bias", "LayerNorm.weight")
    groups = [
        {"params": [p for n, p in model.named_parameters() if not n.endswith(exempt)], "weight_decay": 0.01},
        {"params": [p for n, p in model.named_parameters() if n.endswith(exempt)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    total, warmup = 4 * 13, round(0.1 * 4 * 13)

    def factor(step):
        return (step + 1) / (warmup + 1) if step < warmup else 1 - (step - warmup) / (total - warmup)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    sampler = LengthGroupedSampler(lengths, 12, 50, SEED)
    torch.manual_seed(SEED)
    found = []
    for epoch in range(4):
        for rows in sampler.epoch_batches(epoch):
            inputs = tokenizer(frame.text[rows].tolist(), padding=True, return_tensors="pt")
            labels = torch.tensor([names.index(label) for label in frame.label[rows]])
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return np.array(found), model.eval()


@pytest.mark.slow
def test_curve_and_model_are_those_of_a_plain_loop(fit, encoder, texts):
    """With dropout, so that even the random draws are the same."""
    run_dir, lines = fit(*RECIPE)
    expected, model = plain_loop(encoder, texts / "train.csv")
    assert len(expected) >= NUM_STEPS
    np.testing.assert_allclose(losses(lines), expected, rtol=0, atol=1e-5)
    assert losses(lines)[-5:].mean() < 0.7 * losses(lines)[:5].mean()

    weights = {name.removeprefix("model."): tensor for name, tensor in load_file(run_dir / "model.safetensors").items()}
    frame = pandas.read_csv(texts / "test.csv")
    inputs = AutoTokenizer.from_pretrained(run_dir / "tokenizer")(
        frame.text.tolist(), padding=True, return_tensors="pt"
    )
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model(**inputs).logits
    names = json.loads((run_dir / "inputs.json").read_text())["label_names"]
    by_hand = [names[number] for number in logits.argmax(1)]
    final = {key: value for line in lines for key, value in line.items()}
    assert final["test/accuracy"] == pytest.approx(np.mean(frame.label == by_hand))
    assert final["test/f1_macro"] == pytest.approx(f1_score(frame.label, by_hand, average="macro"), abs=1e-6)
    assert final["test/mcc"] == pytest.approx(matthews_corrcoef(frame.label, by_hand), abs=1e-6)
    for name in ("val", "test"):
        assert (run_dir / "samples" / f"confusion-{name}.png").is_file()
        rows = pandas.read_csv(run_dir / "samples" / f"confusion-{name}.csv", index_col=0)
        assert rows.to_numpy().sum() == SIZES["validation" if name == "val" else name]
    check_baselines(lines, texts)

    probabilities = logits.softmax(1).numpy()
    check_predictions(run_dir, texts / "test.csv", by_hand, probabilities)
    check_facts(run_dir, encoder)


def check_predictions(run_dir, file, labels, probabilities):
    """On 1, 2 and 3 ranks: identical, in order, none missing, and those of the model called by hand."""
    outputs = []
    for devices in (1, 2, 3):
        output = run_dir / f"{devices}.csv"
        assert (
            main(["predict", f"run={run_dir}", f"input={file}", f"output={output}", f"trainer.devices={devices}"]) == 0
        )
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]
    rows, given = pandas.read_csv(run_dir / "1.csv"), pandas.read_csv(file)
    pandas.testing.assert_frame_equal(rows[given.columns], given)
    assert rows.predicted_label.tolist() == labels
    columns = [f"probability_{name}" for name in ("bad", "fair", "good")]
    np.testing.assert_allclose(rows[columns], probabilities, atol=2e-6)


def check_baselines(lines, texts):
    """The share of the most frequent training class, once, whatever the number of evaluations."""
    frequent = pandas.read_csv(texts / "train.csv").label.mode()[0]
    for name, file in (("val", "validation"), ("test", "test")):
        (found,) = [line[f"{name}/accuracy_baseline"] for line in lines if f"{name}/accuracy_baseline" in line]
        assert found == pytest.approx((pandas.read_csv(texts / f"{file}.csv").label == frequent).mean())


def check_facts(run_dir, encoder):
    record = json.loads((run_dir / "run.json").read_text())
    model = record["model"]
    assert model["newly_initialised"] == ["classifier.bias", "classifier.weight"]
    assert len(model["weights_sha256"]) == 64
    assert ", 0 truncated" in record["data"]["train"]
    assert record["model"]["pooling"] == "pooler"


@pytest.mark.slow
def test_one_rank_and_two_give_the_same_curve(fit):
    """Also with class weights and with the step cut into micro-batches."""
    words = ["model.dropout=0.0", "task.class_weights=balanced", "trainer.max_epochs=2", *RECIPE[:4]]
    words += ["trainer.log_every_n_steps=1", "batch.global_size=18"]
    _, one = fit(*words, "run.name=one")
    _, two = fit(*words, "run.name=two", "trainer.devices=2", "batch.micro_size=3")
    assert len(losses(one)) == 18
    np.testing.assert_allclose(losses(two), losses(one), rtol=0, atol=1e-4)
    for name in ("val/loss", "val/accuracy", "test/accuracy", "test/mcc"):
        values = [[line[name] for line in lines if name in line] for lines in (one, two)]
        np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-4)


def test_user_errors_found_on_a_rank_end_with_exit_code_2(words, in_directory, capsys):
    assert main([*words, "data.label=mood"]) == 2
    assert "no column mood" in capsys.readouterr().err


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_texts", [1, 7, 64, 65])
def test_predict_deals_each_text_to_one_rank(num_texts, world_size):
    lengths = np.random.default_rng(0).integers(1, 30, num_texts)
    shares = [predict_batches(lengths, 8, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    dealt = [int(i) for share in shares for micro in share for i in micro.indices[: micro.num_valid]]
    assert sorted(dealt) == list(range(num_texts))
    alone = {tuple(micro.indices) for micro in predict_batches(lengths, 8, 0, 1)}
    assert {tuple(micro.indices) for share in shares for micro in share if micro.num_valid} == alone


@pytest.mark.slow
def test_pairs_and_scores_end_to_end(fit, texts, capsys):
    words = ["data.text_pair=other", "task.kind=regression", "data.label=score", "model.pooling=mean"]
    words += ["optimizer.lr=0.003", "trainer.max_epochs=8", "model.gradient_checkpointing=true", "model.dropout=0.0"]
    words += ["task.layer_lr_decay=0.9", "trainer.precision=bf16-mixed", "task.baseline=true"]
    run_dir, lines = fit(*words)
    final = {key: value for line in lines for key, value in line.items()}
    assert final["test/spearman"] > 0.6
    assert final["test/rmse"] < 0.8 * final["test/rmse_baseline"]
    record = json.loads((run_dir / "run.json").read_text())
    assert record["model"]["baselines"]["test/pearson_tfidf"] == final["test/pearson_tfidf"] > 0.6
    assert main(["predict", f"run={run_dir}", f"input={texts / 'test.csv'}", "output=scores.jsonl"]) == 0
    rows = pandas.read_json("scores.jsonl", lines=True)
    found = rows[["predicted_score", "score"]].corr("spearman").iloc[0, 1]
    assert found == pytest.approx(final["test/spearman"], abs=0.02)
    evaluated = main(["eval", f"run={run_dir}"])
    assert evaluated == 0
    assert json.loads((run_dir / "eval.json").read_text())["test/spearman"] == pytest.approx(final["test/spearman"])
    capsys.readouterr()
    assert main(["predict", f"run={run_dir}", "input=none.csv", "output=a.xml"]) == 2
    printed = capsys.readouterr().err
    assert "input=none.csv: no such file" in printed
    assert "output=a.xml: no format to write" in printed


def composed_values(*words):
    mapping = compose_mapping(["task=bert", *words])
    return (
        mapping.optimizer.lr, mapping.trainer.max_epochs, mapping.monitor.metric, mapping.monitor.mode,
    )  # fmt: skip


def test_defaults_follow_the_weights_and_the_kind_of_label():
    tiny, pretrained = composed_values(), composed_values("model=minilm")
    assert tiny == (0.001, 6, "val/accuracy", "max")
    assert pretrained[0] < tiny[0] / 5
    assert composed_values("model=bert_large")[0] < composed_values("model=bert_base")[0] < pretrained[0]
    assert composed_values("model=minilm", "model.pretrained=false")[:2] == (0.0005, 10)
    assert composed_values("task.kind=regression")[2:] == ("val/pearson", "max")
    assert composed_values("task.kind=regression", "monitor.metric=val/rmse")[2:] == ("val/rmse", "min")
    assert composed_values("model=minilm", "optimizer.lr=0.25", "trainer.max_epochs=2")[:2] == (0.25, 2)


def test_a_metric_in_the_wrong_direction_is_refused(words, in_directory, capsys):
    assert main([*words, "monitor.metric=val/loss", "monitor.mode=max"]) == 2
    assert "monitor.mode=max: a smaller val/loss is better" in capsys.readouterr().err
    assert main([*words, "task.kind=regression", "data.label=score", "monitor.metric=val/f1"]) == 2
    assert "monitor.metric=val/f1: not measured with task.kind=regression" in capsys.readouterr().err

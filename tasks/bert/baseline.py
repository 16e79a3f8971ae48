"""What a model must exceed: a constant answer, and a linear model on TF-IDF features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Texts of one set and their labels (N,), class numbers or scores.
Rows = tuple[Sequence[str], np.ndarray]


def constant_metrics(train: np.ndarray, labels: np.ndarray, kind: str) -> dict[str, float]:
    """Metrics on a set of always answering the most frequent training class, or the mean training score.

    Args: train, labels: labels (N,) of the training set and of the set. kind: of BertTaskConfig.
    """
    if kind == "regression":
        return {"rmse_baseline": _rmse(labels, np.full(len(labels), train.mean(dtype=np.float64)))}
    most_frequent = np.bincount(train).argmax()
    return {"accuracy_baseline": float(np.mean(labels == most_frequent))}


def tfidf_metrics(train: Rows, sets: Mapping[str, Rows], kind: str) -> dict[str, float]:
    """Metrics of TF-IDF of words and pairs of words with logistic or ridge regression, trained on the same rows.

    Args: sets: to evaluate, by prefix ("val", "test"). Returns: metrics with prefix, such as val/accuracy_tfidf.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import f1_score

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    # C=10 is better than scikit-learn's default of 1 on the small sets of docs/bert.md, by up to 0.13 of accuracy.
    model: Any = Ridge() if kind == "regression" else LogisticRegression(C=10.0, max_iter=1000)
    model.fit(vectorizer.fit_transform(train[0]), train[1])
    metrics: dict[str, float] = {}
    for prefix, (texts, labels) in sets.items():
        predicted = model.predict(vectorizer.transform(texts))
        if kind == "regression":
            pearson = float(np.corrcoef(predicted, labels)[0, 1])
            metrics |= {f"{prefix}/rmse_tfidf": _rmse(labels, predicted), f"{prefix}/pearson_tfidf": pearson}
        else:
            macro = float(f1_score(labels, predicted, average="macro"))
            accuracy = float(np.mean(labels == predicted))
            metrics |= {f"{prefix}/accuracy_tfidf": accuracy, f"{prefix}/f1_macro_tfidf": macro}
    return metrics


def _rmse(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((labels.astype(np.float64) - predicted) ** 2)))

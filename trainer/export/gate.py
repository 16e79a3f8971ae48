"""Prove that an export computes what the run's network computes, on raw inputs through its own preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.export.formats import Tolerance
from trainer.export.manifest import Parity
from trainer.export.model import ExportedNetwork
from trainer.inference import Evaluation, ExportableInference

# Batches that a fixed dimension, or one of a padded width, does not survive.
SMALL_SIZES = (1, 2, 7)
ARGUMENTS_TOLERANCE = 1e-5  # of normalised pixels and latent points, relative and absolute
RESULT_ATOL = 1e-4  # of probabilities; outputs have their own tolerance


class NotEqual(Exception):
    """An export differs from the run's network. The message says where and by how much."""


class Gate:
    """Compares exports with a run's network in float32.

    evaluation: None where the run's data is not available, for `reason`; then the model's probes take its place.
    """

    def __init__(
        self, model: ExportableInference, evaluation: Evaluation | None, name: str, reason: str | None, batch_size: int
    ) -> None:
        self.model, self.evaluation, self.name, self.reason = model, evaluation, name, reason
        self.probes = list(_batches(model.probes(), batch_size))
        inputs = [] if evaluation is None else evaluation.inputs
        self.batches = [*self.probes, *_batches(inputs, batch_size)]
        self.expected: list[Tensor] = []

    def prove(self, candidate: ExportedNetwork, tolerance: Tolerance) -> Parity:
        """How far the candidate is from the network. Raises: NotEqual: further than the tolerance, or it fails."""
        outputs: list[np.ndarray] = []
        largest, total, count, shapes = 0.0, 0.0, 0, set[tuple[int, ...]]()
        too_far: list[str] = []
        scale = tolerance.unit(np.concatenate(self._expected()))
        for batch, expected in zip(self.batches, self._expected(), strict=True):
            found, shape, place = self._outputs_of(candidate, batch, expected)
            outputs.append(found)
            difference = np.abs(found.astype(np.float64) - expected)
            # Not `>`: a difference that is not a number is no proof either.
            if not difference.max() <= tolerance.largest * scale:
                limit = tolerance.largest * scale
                too_far.append(f"outputs differ by {difference.max():.3g} at {place}; allowed: {limit:.3g}")
            largest = max(largest, float(difference.max()))
            total, count = total + float(difference.sum()), count + difference.size
            shapes.add(shape)
        if too_far:  # only now: what is wrong with the preprocessing of a later batch says more
            raise NotEqual(too_far[0])
        mean = total / count
        if not mean <= tolerance.mean * scale:
            raise NotEqual(f"outputs differ by {mean:.3g} on average; allowed: {tolerance.mean * scale:.3g}")
        self._compare_results(candidate)
        metric = self._metric(outputs, tolerance)
        return Parity(
            measured_on=self.name,
            reason=self.reason,
            samples=sum(len(batch) for batch in self.batches),
            largest=largest,
            mean=mean,
            shapes=sorted(map(list, shapes))[:12],
            metric=None if metric is None else self.model.metric,
            of_run=None if metric is None else metric[0],
            of_export=None if metric is None else metric[1],
        )

    def _expected(self) -> list[np.ndarray]:
        """Outputs of the run's network for each batch; computed once for all formats."""
        if not self.expected:
            self.expected = [self.model.forward(self.model.preprocess(batch)).cpu() for batch in self.batches]
        return [tensor.numpy() for tensor in self.expected]

    def _outputs_of(
        self, candidate: ExportedNetwork, batch: Sequence[Any], expected: np.ndarray
    ) -> tuple[np.ndarray, tuple[int, ...], str]:
        """Outputs, shape of the first argument, and the batch in words. Raises: NotEqual."""
        own = self.model.preprocess(batch)
        arrays = candidate.preprocess(batch)
        name = next(iter(own))
        place = f"{name} {tuple(own[name].shape)}"
        for key, tensor in own.items():
            if key not in arrays or arrays[key].shape != tuple(tensor.shape):
                shape = arrays[key].shape if key in arrays else "nothing"
                raise NotEqual(f"its preprocessing gives {shape} for {key} instead of {tuple(tensor.shape)}")
            # Exact in every format, so a fault here need not be larger than what fewer bits change in the outputs.
            if not np.allclose(arrays[key], tensor.cpu().numpy(), rtol=ARGUMENTS_TOLERANCE, atol=ARGUMENTS_TOLERANCE):
                raise NotEqual(f"its preprocessing gives other values for {key} at {place}")
        try:
            found = candidate.forward(arrays)
        except Exception as error:  # whatever a runtime raises, the candidate has failed
            raise NotEqual(f"it fails at {place}: {' '.join(str(error).split())[:160]}") from error
        if found.shape != expected.shape:
            raise NotEqual(f"outputs have the shape {found.shape} at {place} instead of {expected.shape}")
        return found, tuple(own[name].shape), place

    def _compare_results(self, candidate: ExportedNetwork) -> None:
        """The same outputs have to become the same results: label names in the same order."""
        outputs = self._expected()[-1]
        own, found = self.model.postprocess(torch.from_numpy(outputs)), candidate.postprocess(outputs)
        if not all(_alike(left, right) for left, right in zip(own, found, strict=True)):
            raise NotEqual("the same outputs become other results, so its labels or its rounding are wrong")

    def _metric(self, outputs: Sequence[np.ndarray], tolerance: Tolerance) -> tuple[float, float] | None:
        """The metric of run and export. Raises: NotEqual."""
        evaluation = self.evaluation
        if evaluation is None:
            return None
        first = len(self.probes)
        of_run = evaluation.score(torch.cat(self.expected[first:]))
        of_export = evaluation.score(torch.from_numpy(np.concatenate(outputs[first:])))
        points = 100 * abs(of_run - of_export) / (1.0 if evaluation.is_share else max(abs(of_run), 1e-12))
        if not points <= tolerance.points:
            values = f"{evaluation.metric} is {of_export:.4f} instead of {of_run:.4f} on {self.name}"
            raise NotEqual(f"{values}, {points:.2f} points; allowed: {tolerance.points}")
        return of_run, of_export


def _batches(inputs: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """All inputs in order: small batches at both ends, where the shortest and the longest are."""
    end = len(inputs) - sum(SMALL_SIZES)
    start = 0
    for each in SMALL_SIZES:
        if start < len(inputs):
            yield inputs[start : start + each]
        start += each
    while start < end:
        yield inputs[start : min(start + size, end)]
        start = min(start + size, end)
    for each in reversed(SMALL_SIZES):
        if start < len(inputs):
            yield inputs[start : start + each]
        start += each


def _alike(left: Any, right: Any) -> bool:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return list(left) == list(right) and all(_alike(left[key], right[key]) for key in left)
    if isinstance(left, float) and isinstance(right, float):
        return abs(left - right) <= RESULT_ATOL * max(1.0, abs(left))
    return left == right

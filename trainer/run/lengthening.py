"""A run that is made longer: the same directory, with more epochs or steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from trainer.run.files import CHECKPOINTS_DIR, CURVES_FILE, EVALUATION_FILE, HF_DIR, MODEL_FILE, REPORT_FILE
from trainer.run.record import Record, now

LENGTHS = ("trainer.max_epochs", "trainer.max_steps")
# What the shorter run has ended with, which must not be taken for results of the longer one.
RESULTS = (MODEL_FILE, f"{EVALUATION_FILE.removesuffix('.json')}*.json", CURVES_FILE, REPORT_FILE, HF_DIR)


def is_longer(old: Mapping[str, Any], new: Mapping[str, Any], differing: Collection[str]) -> bool:
    """Whether an experiment differs from a recorded one in its length only, and is longer. Args: identities."""
    return set(differing) <= set(LENGTHS) and all(_length(new.get(key)) >= _length(old.get(key)) for key in LENGTHS)


def lengthen(record: Record, identity_hash: str, identity: Mapping[str, Any]) -> None:
    """Make a run longer: record what has changed, and set aside what the shorter run has ended with.

    Args: identity_hash, identity: of the longer run.
    """
    stored = record.read()
    changed = {key: [stored["identity"].get(key), identity[key]] for key in LENGTHS}
    changed = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
    results = [path for pattern in RESULTS for path in sorted(record.directory.glob(pattern))]
    last = record.directory / CHECKPOINTS_DIR / "last"
    kept = record.directory / f"until-{last.resolve().name}"
    for path in results:
        kept.mkdir(exist_ok=True)
        path.rename(kept / path.name)
    entry = {"time": now(), "changed": changed, "attempt": len(stored["attempts"]) + 1, "results": kept.name}
    record.update(
        hash=identity_hash,
        identity=dict(identity),
        status="created",
        continuations=[*stored.get("continuations", []), entry if results else {**entry, "results": None}],
    )


def _length(value: int | None) -> float:
    """Both null and -1 stand for no limit."""
    return math.inf if value is None or value == -1 else value

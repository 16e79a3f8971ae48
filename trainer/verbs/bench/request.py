"""What `bench scaling` is asked to measure: its words, checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from trainer.errors import UserError, counted
from trainer.verbs.bench.words import FEWEST_STEPS, number, rounds_of, take_own
from trainer.verbs.prepare import PreparedRun, prepare, take_options

Kind = Literal["training", "inference", "data"]
Mode = Literal["strong", "weak", "both"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OWN = {"rounds": "7", "steps": "60", "mode": "both", "out": ""}
DEVICES, ACCELERATOR = "trainer.devices", "trainer.accelerator"


@dataclass(frozen=True)
class Request:
    """A scaling study.

    words: of the configuration, without devices and accelerator. devices: numbers of ranks, the first one is 1.
    accelerators: several are compared on one device each. steps: of a training sample. prepared: on one device.
    """

    kind: Kind
    words: list[str]
    devices: list[int]
    accelerators: list[str]
    rounds: int
    steps: int
    mode: Mode
    out: Path
    prepared: PreparedRun


def parse(words: Sequence[str]) -> Request:
    """Check the words. Raises: UserError: a wrong word, a missing side, or devices that are not here."""
    rest = list(words)
    kind = rest.pop(0) if rest and rest[0] in KINDS else "training"
    own, others = take_own("scaling", rest, {**OWN, DEVICES: "", ACCELERATOR: "cpu"}, KINDS)
    accelerators = own[ACCELERATOR].split(",")
    devices = _devices(own[DEVICES], accelerators)
    mode = own["mode"]
    if mode not in get_args(Mode):
        raise UserError(f"mode={mode}: possible: {', '.join(get_args(Mode))}")
    options, overrides = take_options(others)
    prepared = [
        prepare([*overrides, f"{DEVICES}={count}", f"{ACCELERATOR}={name}"], options)
        for name in accelerators
        for count in devices
    ]
    config = prepared[0].config
    out = Path(own["out"] or f"outputs/bench/scaling-{kind}-{config.task.name}-{config.model.name}-{config.data.name}")
    return Request(
        kind,  # pyright: ignore[reportArgumentType]
        [*options.as_words(), *overrides],
        devices,
        accelerators,
        rounds_of(own),
        number("steps", own["steps"], FEWEST_STEPS),
        mode,  # pyright: ignore[reportArgumentType]
        out,
        prepared[0],
    )


def busy_note(devices: Sequence[int]) -> str | None:
    """What a reader has to know about the cores of this machine."""
    cores = os.cpu_count() or 1
    if max(devices) <= cores:
        return None
    return f"{max(devices)} ranks share {counted(cores, 'core')}: this measures the machine, not the program"


def _devices(text: str, accelerators: Sequence[str]) -> list[int]:
    if len(accelerators) > 1:
        if text not in ("", "1"):
            raise UserError(f"{DEVICES}={text}: several accelerators are compared on one device each; leave it out")
        return [1]
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{DEVICES}={text}: bench scaling takes numbers of devices, as in {DEVICES}=1,2")
    devices = sorted({int(part) for part in parts})
    if len(devices) < 2 or devices[0] != 1:
        raise UserError(
            f"{DEVICES}={text}: a speed-up is a ratio to the time on one device, and both have to be measured",
            f"as in {DEVICES}=1,2",
        )
    return devices

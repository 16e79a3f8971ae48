"""The names of what a deployment can be written for."""

from __future__ import annotations

from trainer.errors import UserError, nearest

TARGETS = ("hub", "triton", "docker", "kubernetes")


def requested_targets(text: str) -> list[str]:
    """Targets of `deploy=A,B`. Raises: UserError: there is no such target."""
    names = list(dict.fromkeys(name for name in text.split(",") if name))
    for name in names:
        if name not in TARGETS:
            raise UserError(f"deploy={name}: no such target; {nearest(name, TARGETS)}")
    return names

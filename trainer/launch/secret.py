"""The secret of a job: what its processes share and no other user has, to recognise each other where they meet.

It stands in the job's environment, which only its owner can read. Where nobody has put it there, as when a user starts
the same command on several nodes, it is derived from a random file in the user's home directory.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import UserError

SECRET_VARIABLE = "TRAINER_JOB_SECRET"
SECRET_BYTES = 32
SHORTEST_SECRET = 16  # characters


def new_secret() -> str:
    """A random secret."""
    return secrets.token_hex(SECRET_BYTES)


def given_secret() -> str | None:
    """The secret of the environment. Raises: UserError: it is too short to be one."""
    secret = os.environ.get(SECRET_VARIABLE)
    if secret is not None and len(secret) < SHORTEST_SECRET:
        advice = "use the output of `openssl rand -hex 32`, the same on every node"
        raise UserError(f"{SECRET_VARIABLE}: has less than {SHORTEST_SECRET} characters", advice)
    return secret


def job_secret(job: str) -> str:
    """The secret of the environment, else the one that all processes of this user derive for a job.

    Args: job: a name that is the same on all nodes.
    Raises: UserError: the user's file cannot be used.
    """
    return given_secret() or sign(_user_secret(), "job", job)


@contextmanager
def shared_with_ranks(secret: str) -> Iterator[None]:
    """Processes that are started within inherit the secret."""
    before = os.environ.get(SECRET_VARIABLE)
    os.environ[SECRET_VARIABLE] = secret
    try:
        yield
    finally:
        del os.environ[SECRET_VARIABLE]
        if before is not None:
            os.environ[SECRET_VARIABLE] = before


def sign(secret: str, purpose: str, *words: str) -> str:
    """HMAC-SHA256 as hex digits. Args: purpose: a signature for one purpose is none for another."""
    message = "\0".join((purpose, *words)).encode()
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()


def is_signed(signature: str, secret: str, purpose: str, *words: str) -> bool:
    """Whether a signature is of `sign` with this secret; takes as long for a wrong one."""
    return hmac.compare_digest(signature.encode(), sign(secret, purpose, *words).encode())


def secret_file() -> Path:
    """Where a user's secret is kept: not in the cache, which users may share."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "trainer" / "secret"


def _user_secret() -> str:
    file = secret_file()
    try:
        if not os.path.lexists(file):
            _create(file)
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, encoding="ascii") as opened:
            status = os.fstat(descriptor)
            text = opened.read().strip()
    except (OSError, RuntimeError, UnicodeError) as error:
        advice = f"or give all nodes of the job the same random {SECRET_VARIABLE}"
        raise UserError(
            f"{file}: the secret by which nodes recognise each other cannot be used ({error})", advice
        ) from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077 or len(text) < SHORTEST_SECRET:
        raise UserError(f"{file}: other users can read or write it, or it is damaged", "remove it; a new one is made")
    return text


def _create(file: Path) -> None:
    """Create the file complete: another node that looks at the same time finds all of it or nothing."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged = file.with_name(f".secret.{secrets.token_hex(8)}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as opened:
            opened.write(new_secret() + "\n")
            opened.flush()
            os.fsync(descriptor)
        try:
            os.link(staged, file)
        except FileExistsError:
            return  # another node was first
    finally:
        staged.unlink()

"""Stores and rendezvous states that prove to be of this job.

torch's store takes connections from everybody and gives everybody all keys. Its rendezvous keeps a pickle there, which
is code for those who read it. Here a store answers a challenge with the job's secret before it is used, and the state
is JSON with a signature that is checked before anything is decoded.
"""

from __future__ import annotations

import atexit
import json
import pickle
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.rendezvous import RendezvousStateError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc, _RendezvousState

from trainer.errors import UserError
from trainer.launch.secret import SECRET_VARIABLE, is_signed, secret_file, sign

CHALLENGES = "trainer.challenges"
ANSWER = "trainer.answer."
ANSWER_TIMEOUT_S = 15
NONCE_BYTES = 16
# The thread that answers waits for the next challenge until its store is closed.
FOREVER = timedelta(days=365)
END_TIMEOUT_S = 5


# Ends of the threads that answer.
_ends: list[Callable[[], None]] = []


def answer_challenges(store: TCPStore, name: str, secret: str) -> None:
    """Answer in a thread, until `stop_answering`, who asks whether the store of this process is of this job.

    Args: name: under which all processes know the store. An answer is worth nothing for a store of another name, so
        that nobody can pass on what this one answers.
    """
    # A connection of its own: a call that waits blocks all others of its connection.
    client = TCPStore(store.host, store.port, None, is_master=False, timeout=FOREVER, wait_for_workers=False)
    ending = threading.Event()

    def answer() -> None:
        with suppress(DistError):
            while not ending.is_set():
                nonce = client.queue_pop(CHALLENGES).decode("ascii", "replace")
                if len(nonce) == 2 * NONCE_BYTES:
                    client.set(ANSWER + nonce, sign(secret, "store", name, nonce))

    thread = threading.Thread(target=answer, name="store-challenges", daemon=True)

    def end() -> None:
        ending.set()
        with suppress(DistError):
            store.queue_push(CHALLENGES, "")
        thread.join(END_TIMEOUT_S)

    _ends.append(end)
    thread.start()


# A thread that the end of the interpreter finds in C++ code aborts the process.
@atexit.register
def stop_answering() -> None:
    """End the threads of all stores of this process."""
    while _ends:
        _ends.pop()()


def check_store(store: TCPStore, name: str, secret: str) -> None:
    """Raises: UserError: the store does not prove that it is of this job."""
    nonce = secrets.token_hex(NONCE_BYTES)
    usual = store.timeout  # pyright: ignore[reportAttributeAccessIssue]
    store.set_timeout(timedelta(seconds=ANSWER_TIMEOUT_S))
    try:
        store.queue_push(CHALLENGES, nonce)
        signature = store.get(ANSWER + nonce).decode("ascii", "replace")
        proven = is_signed(signature, secret, "store", name, nonce)
        store.delete_key(ANSWER + nonce)
    except DistError:
        proven = False
    store.set_timeout(usual)
    if not proven:
        raise UserError(
            f"what listens at {store.host}:{store.port} does not prove that it is of this job, and is not joined",
            "another user or another run listens there (choose another port), or this node has another secret",
            f"(all nodes need the same {SECRET_VARIABLE}, or the same {secret_file()})",
        )


class SignedBackend(C10dRendezvousBackend):
    """torch's rendezvous state in a store, as signed JSON under a name that follows from the secret."""

    def __init__(self, store: TCPStore, secret: str) -> None:
        self._secret = secret
        super().__init__(store, sign(secret, "state's name"))

    def get_state(self) -> tuple[bytes, Any] | None:
        """See torch's. Raises: RendezvousStateError: somebody else has written the state."""
        found = super().get_state()
        return None if found is None else (self._opened(found[0]), found[1])

    def set_state(self, state: bytes, token: Any | None = None) -> tuple[bytes, Any, bool] | None:
        """See torch's. Raises: RendezvousStateError: somebody else has written the state that is there instead."""
        # torch's handler gives and takes pickles. These two are this process's own and never leave it.
        text = _to_json(pickle.loads(state))
        sealed = f"{sign(self._secret, 'state', text)}.{text}".encode()
        found = super().set_state(sealed, token)
        return None if found is None else (self._opened(found[0]), found[1], found[2])

    def _opened(self, sealed: bytes) -> bytes:
        signature, _, text = sealed.decode("utf-8", "replace").partition(".")
        if not is_signed(signature, self._secret, "state", text):
            reason = "the state in the store is not signed by this job; another user writes to the store"
            raise RendezvousStateError(reason)
        return pickle.dumps(_from_json(text))


def _to_json(state: _RendezvousState) -> str:
    return json.dumps(
        {
            "round": state.round,
            "complete": state.complete,
            "deadline": state.deadline and state.deadline.isoformat(),
            "closed": state.closed,
            "participants": [[*_words(node), rank] for node, rank in state.participants.items()],
            "wait_list": sorted(map(_words, state.wait_list)),
            "redundancy_list": sorted(map(_words, state.redundancy_list)),
            "last_heartbeats": [[*_words(node), time.isoformat()] for node, time in state.last_heartbeats.items()],
        }
    )


def _from_json(text: str) -> _RendezvousState:
    values: Mapping[str, Any] = json.loads(text)
    state = _RendezvousState()
    state.round, state.complete, state.closed = values["round"], values["complete"], values["closed"]
    state.deadline = values["deadline"] and datetime.fromisoformat(values["deadline"])
    state.participants = {_NodeDesc(*node): rank for *node, rank in values["participants"]}
    state.wait_list, state.redundancy_list = _nodes(values["wait_list"]), _nodes(values["redundancy_list"])
    state.last_heartbeats = {
        _NodeDesc(*node): datetime.fromisoformat(time) for *node, time in values["last_heartbeats"]
    }
    return state


def _words(node: _NodeDesc) -> tuple[str, int, int]:
    return (node.addr, node.pid, node.local_id)


def _nodes(found: Iterable[Any]) -> set[_NodeDesc]:
    return {_NodeDesc(*node) for node in found}

"""Another user attacks a rendezvous before and after its owner listens: no code runs, no rank joins.

Both are on one host and meet over loopback. test_attacks_from_another_host.py runs the same with a host for each.
"""

import base64
import ctypes
import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistError, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    dynamic_rendezvous,
)
from watching import free_port

from trainer.errors import UserError
from trainer.launch import authentication
from trainer.launch.authentication import ANSWER, CHALLENGES, stop_answering
from trainer.launch.network import LOOPBACK
from trainer.launch.rendezvous import NodesRendezvous, agent_store, create_nodes_rendezvous, host_store, join_store
from trainer.launch.secret import SECRET_VARIABLE, job_secret, secret_file, sign
from trainer.world import World

NOBODY = 65534
CLONE_NEWNET = 0x40000000  # of <sched.h>
# The owner's address and the attacker's, and the attacker's network namespace.
ADDRESS = os.environ.get("OWNER_ADDRESS", LOOPBACK)
FOREIGN_ADDRESS = os.environ.get("ATTACKER_ADDRESS", LOOPBACK)
FOREIGN_HOST = os.environ.get("ATTACKER_NAMESPACE")
RUN = "trainer-0123abcd"
SECRET = "s" * 64


class Touch:
    """A pickle of it creates a file when it is read."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.close, (os.open, ())) if not self.file else (os.mknod, (self.file,))


def client(port: int, address: str = ADDRESS) -> TCPStore:
    return TCPStore(address, port, None, False, timedelta(seconds=5), wait_for_workers=False)


def state_key(store: TCPStore) -> str:
    """Every connected process sees all keys."""
    return next(key.removeprefix("/") for key in store.list_keys() if "torch.rendezvous." in key)


def write_state(port: int, text: bytes, encoded: bool = True) -> None:
    store = client(port)
    store.set(state_key(store), base64.b64encode(text) if encoded else text)


def changed_state(port: int, change: Callable[[dict[str, Any]], None]) -> None:
    """The state of the owner with its signature, and another content."""
    store = client(port)
    signature, _, text = base64.b64decode(store.get(state_key(store))).partition(b".")
    state = json.loads(text)
    change(state)
    store.set(state_key(store), base64.b64encode(signature + b"." + json.dumps(state).encode()))


def forged(file: str) -> bytes:
    node = ["203.0.113.9", 1, 0]
    state = {"round": 0, "complete": True, "deadline": None, "closed": False, "participants": [[*node, 0]]}
    return json.dumps({**state, "wait_list": [], "redundancy_list": [], "last_heartbeats": []}).encode()


def oracle(port: int) -> bytes:
    """A signature of the owner's, for a challenge."""
    store, nonce = client(port), "0" * 32
    store.queue_push(CHALLENGES, nonce)
    return store.get(ANSWER + nonce)


def pickle_at_guessed_key(port: int, file: str) -> None:
    client(port).set("torch.rendezvous." + RUN, base64.b64encode(pickle.dumps(Touch(file))))


def pickle_with_signature(port: int, file: str) -> None:
    write_state(port, oracle(port) + b"." + pickle.dumps(Touch(file)))


def half_of_the_state(port: int, file: str) -> None:
    store = client(port)
    state = store.get(state_key(store))
    store.set(state_key(store), state[: len(state) // 2])


def no_challenges_left(port: int, file: str) -> None:
    store = client(port)
    for length in (0, 1, 31, 32, 10_000):
        store.queue_push(CHALLENGES, "x" * length)


# Each is called as another user once the owner's first node has joined.
AFTER: dict[str, Callable[[int, str], None]] = {
    "pickle at the key that torch uses": pickle_at_guessed_key,
    "pickle": lambda port, file: write_state(port, pickle.dumps(Touch(file))),
    "pickle, not encoded": lambda port, file: write_state(port, pickle.dumps(Touch(file)), encoded=False),
    "pickle with a signature of another purpose": pickle_with_signature,
    "state without a signature": lambda port, file: write_state(port, forged(file)),
    "state with an empty signature": lambda port, file: write_state(port, b"." + forged(file)),
    "state with a signature of another secret": lambda port, file: write_state(
        port, f"{sign(RUN, 'state', forged(file).decode())}.".encode() + forged(file)
    ),
    "state with a signature of another purpose": lambda port, file: write_state(
        port, oracle(port) + b"." + forged(file)
    ),
    "another participant": lambda port, file: changed_state(
        port, lambda state: state["participants"].append(["203.0.113.9", 1, 0, 1])
    ),
    "another rank": lambda port, file: changed_state(port, lambda state: state["participants"][0].__setitem__(3, 7)),
    "closed": lambda port, file: changed_state(port, lambda state: state.__setitem__("closed", True)),
    "deeply nested": lambda port, file: write_state(port, b"0" * 64 + b"." + b"[" * 100_000),
    "no text": lambda port, file: write_state(port, b"\xff\xfe\x00."),
    "half of the state": half_of_the_state,
    "nothing": lambda port, file: write_state(port, b""),
    "foreign challenges": no_challenges_left,
}


def listen_silently(port: int, file: str) -> Any:
    """A store like the owner's that answers no challenge."""
    return TCPStore(FOREIGN_ADDRESS, port, None, True, timedelta(seconds=5), wait_for_workers=False)


def listen_and_answer(port: int, file: str, answer: Callable[[bytes], bytes] = lambda nonce: nonce) -> Any:
    server = listen_silently(port, file)
    server.set("torch.rendezvous." + RUN, base64.b64encode(pickle.dumps(Touch(file))))
    mine = client(port, FOREIGN_ADDRESS)

    def reply() -> None:
        with suppress(DistError):
            nonce = mine.queue_pop(CHALLENGES)
            mine.set(ANSWER + nonce.decode(), answer(nonce))

    threading.Thread(target=reply, daemon=True).start()
    return server


def listen_and_relay(port: int, file: str) -> Any:
    """A store that lets a real one of the same job answer."""
    real = client(int(Path(file + ".port").read_text()))

    def ask(nonce: bytes) -> bytes:
        real.queue_push(CHALLENGES, nonce)
        return real.get(ANSWER + nonce.decode())

    return listen_and_answer(port, file, ask)


def listen_and_send(port: int, file: str) -> Any:
    """No store at all."""
    server = socket.create_server((FOREIGN_ADDRESS, port))

    def send() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                connection.sendall(pickle.dumps(Touch(file)) * 1000)
                connection.close()

    threading.Thread(target=send, daemon=True).start()
    return server


BEFORE: dict[str, Callable[[int, str], Any]] = {
    "silent": listen_silently,
    "echo": listen_and_answer,
    "answer with another secret": lambda port, file: listen_and_answer(
        port, file, lambda nonce: sign(RUN, "store", f"{FOREIGN_ADDRESS}:{port}", nonce.decode()).encode()
    ),
    "no text": lambda port, file: listen_and_answer(port, file, lambda nonce: b"\xff" * 64),
    "relay": listen_and_relay,
    "no store": listen_and_send,
}


def attack(commands: Connection) -> None:
    """Another user: calls what the test names, keeps what it listens with, and says when it is done."""
    if FOREIGN_HOST is not None:
        with Path("/var/run/netns", FOREIGN_HOST).open() as namespace:
            assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    held: list[Any] = []
    while (command := commands.recv()) is not None:
        table, name, port, file = command
        try:
            held.append({"before": BEFORE, "after": AFTER}[table][name](port, file))
            commands.send(None)
        except Exception as error:  # noqa: BLE001 - the test reports it
            commands.send(repr(error))
        if table == "after":
            held.clear()
    os._exit(0)


@pytest.fixture(scope="module")
def attacker() -> Iterator[Callable[..., None]]:
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=attack, args=(theirs,), daemon=True)
    process.start()

    def run(*command: Any) -> None:
        ours.send(command)
        assert ours.poll(30), "the attack hangs"
        assert (failure := ours.recv()) is None, failure

    yield run
    ours.send(None)
    process.join(10)
    # A process that a later test forks must find no stores to destroy.
    gc.collect()


@pytest.fixture(autouse=True)
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A secret of this job, short waits, and a directory that everybody may write to. Yields: what a pickle creates."""
    monkeypatch.setenv(SECRET_VARIABLE, SECRET)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(authentication, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr("trainer.launch.rendezvous.STORE_TIMEOUT_S", 2)
    # torch's pauses between two looks at the state, of a second.
    monkeypatch.setattr(dynamic_rendezvous, "_delay", lambda seconds: threading.Event().wait(0.03))
    # Not below tmp_path, whose parents no other user may enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder, "executed")
        stop_answering()


def node(port: int, nodes: int = 2, address: str = ADDRESS) -> NodesRendezvous:
    parameters = RendezvousParameters(
        "trainer", f"{address}:{port}", RUN, nodes, nodes, local_addr=ADDRESS, join_timeout=20, last_call_timeout=1
    )
    made = create_nodes_rendezvous(parameters)
    # torch looks at the state again only after a second.
    made._state_holder._cache_duration = 0  # pyright: ignore[reportAttributeAccessIssue]
    return made


def meet(nodes: list[NodesRendezvous], between: Callable[[], None] = lambda: None) -> list[RendezvousInfo | Exception]:
    """Let nodes join one after the other, with something in between. Returns: what each of them got."""
    found: list[RendezvousInfo | Exception] = []

    def join(which: NodesRendezvous) -> None:
        try:
            found.append(which.next_rendezvous())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            found.append(error)

    threads = [threading.Thread(target=join, args=(each,), daemon=True) for each in nodes]
    for number, thread in enumerate(threads):
        thread.start()
        if number == 0:
            _wait_for_state(nodes[0])
            between()
    for thread in threads:
        thread.join(40)
    for each in nodes:
        each.shutdown()
    return found


def _wait_for_state(first: NodesRendezvous) -> None:
    """Until the first node has written that it takes part. Its own copy of the state has it a moment earlier."""
    holder: Any = first._state_holder
    for _ in range(200):
        if holder.state.participants and holder._backend.get_state() is not None:
            return
        threading.Event().wait(0.02)
    raise AssertionError("the first node does not join")


def test_two_nodes_meet_in_every_round() -> None:
    """The control: and their ranks join the store that the first node holds."""
    port = free_port()
    nodes = [node(port), node(port)]
    first = meet(nodes)
    assert sorted(info.rank for info in first if isinstance(info, RendezvousInfo)) == [0, 1], first
    info = next(info for info in first if isinstance(info, RendezvousInfo)).bootstrap_store_info
    world = World("torchrun", "cpu", 2, 1, 2, 0, 0, info.master_addr, info.master_port)
    store = agent_store(world, 5)
    assert store is not None and store.port == info.master_port


@pytest.mark.parametrize("name", AFTER)
def test_nobody_joins_a_rendezvous_that_listens(name: str, attacker: Callable[..., None], job: Path) -> None:
    port = free_port()
    nodes = [node(port), node(port)]
    found = meet(nodes, lambda: attacker("after", name, port, str(job)))
    assert not job.exists(), "code of another user was executed"
    for each in found:
        if isinstance(each, RendezvousInfo):
            assert each.world_size == 2 and each.rank in (0, 1)
        else:
            assert isinstance(each, RendezvousStateError), repr(each)
            assert "not signed by this job" in str(each) or "is corrupt" in str(each)
    for each in nodes:
        assert {one.addr for one in each._state_holder.state.participants} <= {ADDRESS}


@pytest.mark.parametrize("name", BEFORE)
def test_a_store_of_another_user_is_not_joined(name: str, attacker: Callable[..., None], job: Path) -> None:
    port = free_port()
    real = host_store(ADDRESS, 0, SECRET)
    Path(f"{job}.port").write_text(str(real.port))
    attacker("before", name, port, str(job))
    with pytest.raises(UserError) as refusal:
        node(port, address=FOREIGN_ADDRESS)
    assert f"{FOREIGN_ADDRESS}:{port}" in str(refusal.value) and len(refusal.value.lines) <= 3
    assert name == "no store" or "does not prove that it is of this job" in str(refusal.value)
    # A rank that another user has directed to a store of his own.
    with pytest.raises(UserError):
        agent_store(World("torchrun", "cpu", 2, 1, 2, 1, 0, FOREIGN_ADDRESS, port), 2)
    assert not job.exists(), "code of another user was executed"


def test_a_store_of_this_job_is_joined_and_one_of_another_run_is_not() -> None:
    store = host_store(LOOPBACK, 0, SECRET)
    join_store(LOOPBACK, store.port, SECRET).set("key", "value")
    assert store.get("key") == b"value"
    with pytest.raises(UserError, match="another secret"):
        join_store(LOOPBACK, store.port, SECRET[1:])
    with pytest.raises(UserError, match="another secret"):
        join_store(LOOPBACK, store.port, SECRET, name="another name")


def test_the_secret_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET_VARIABLE)
    first = job_secret("one")
    assert job_secret("one") == first != job_secret("two")
    file = secret_file()
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in file.parent.iterdir()] == ["secret"]
    assert first not in file.read_text()

    file.chmod(0o644)
    with pytest.raises(UserError, match="other users can read"):
        job_secret("one")
    file.chmod(0o600)
    os.chown(file, NOBODY, NOBODY)
    with pytest.raises(UserError, match="other users can read"):
        job_secret("one")
    moved = file.rename(file.with_name("elsewhere"))
    file.symlink_to(moved)
    with pytest.raises(UserError, match="cannot be used"):
        job_secret("one")
    monkeypatch.setenv(SECRET_VARIABLE, "short")
    with pytest.raises(UserError, match="less than 16"):
        job_secret("one")


def test_a_signature_is_for_one_purpose_and_one_text() -> None:
    signatures = {sign(SECRET, "a", "b"), sign(SECRET, "b", "a"), sign(SECRET, "a", "bb"), sign(SECRET[1:], "a", "b")}
    assert len(signatures) == 4 and hashlib.sha256().digest_size * 2 == len(signatures.pop())

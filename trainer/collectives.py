"""Collectives on numbers and on small values; with one process they return what they are given.

Values travel as JSON bytes: torch's object collectives unpickle what a peer sends, which is code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.errors import UserError


def has_peers() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first_rank() -> bool:
    """Whether this process prints and writes."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks in place and return it."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_gather_bytes(data: bytes) -> list[bytes]:
    """Gather the bytes of every rank, in the order of ranks; lengths may differ."""
    if not has_peers():
        return [data]
    device = _device()
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(data)], device=device))
    longest = max(1, *(int(size) for size in sizes))
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else padded[:0]
    parts = [torch.empty(longest, dtype=torch.uint8, device=device) for _ in sizes]
    dist.all_gather(parts, padded.to(device))
    return [bytes(part[: int(size)].cpu().numpy()) for part, size in zip(parts, sizes, strict=True)]


def all_gather_json(value: Any) -> list[Any]:
    """Gather a JSON value of every rank, in the order of ranks."""
    return [json.loads(data) for data in all_gather_bytes(json.dumps(value).encode())]


def broadcast_json(value: Any) -> Any:
    """Return rank 0's JSON value on every rank; the values of other ranks are ignored."""
    if not has_peers():
        return value
    device = _device()
    data = bytearray(json.dumps(value).encode()) if dist.get_rank() == 0 else bytearray()
    size = torch.tensor([len(data)], device=device)
    dist.broadcast(size, src=0)
    content = (
        torch.frombuffer(data, dtype=torch.uint8).to(device)
        if data
        else torch.empty(int(size), dtype=torch.uint8, device=device)
    )
    dist.broadcast(content, src=0)
    return json.loads(bytes(content.cpu().numpy()))


def decide_on_rank_0(decide: Callable[[], Any]) -> Any:
    """Call a function on rank 0 only and return its JSON value on every rank.

    Raises: UserError: on every rank, where rank 0's call raised one. Any other exception stays on rank 0.
    """
    if not has_peers():
        return decide()
    message: dict[str, Any] = {}
    if dist.get_rank() == 0:
        try:
            message = {"value": decide()}
        except UserError as error:
            message = {"error": error.lines}
    message = broadcast_json(message)
    if "error" in message:
        raise UserError(*message["error"])
    return message["value"]


def broadcast_weights(network: nn.Module, device: torch.device) -> None:
    """Give every rank rank 0's parameters and buffers of a network that is not sharded yet."""
    for tensor in [*network.parameters(), *network.buffers()]:
        full = tensor.detach().to(device)
        dist.broadcast(full, src=0)
        tensor.data.copy_(full)


class PendingAny:
    """Whether any rank's flag is set: asked at once, read later, so that no rank waits for its device in between.

    Every rank creates one and reads it at the same points of the program.
    """

    def __init__(self, flag: bool) -> None:
        # `full` launches a kernel where `tensor` would copy from the host and wait.
        self.flag = torch.full((), float(flag), device=_device())
        self.work = dist.all_reduce(self.flag, async_op=True)
        self.copied: torch.cuda.Event | None = None
        if self.flag.is_cuda:
            # On a stream of its own: a copy in the current stream would be queued behind the next step.
            stream = _side_stream()
            with torch.cuda.stream(stream):
                self._wait()
                host = torch.empty((), pin_memory=True)
                host.copy_(self.flag, non_blocking=True)
                self.flag.record_stream(stream)
                self.copied = torch.cuda.Event()
                self.copied.record(stream)
            self.flag = host

    def read(self) -> bool:
        """The answer; waits for it where it has not arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        else:
            self._wait()
        return bool(self.flag.item())

    def _wait(self) -> None:
        if self.work is not None:
            self.work.wait()


class Agreement:
    """Whether any rank's flag is set, asked after every step; all ranks get the same answer.

    Several ranks receive what the last call asked, and ask again: waiting for the sum at once would wait for the device
    in every step. So they agree one call after the flag.
    """

    def __init__(self) -> None:
        self._pending: PendingAny | None = None

    def reached(self, flag: bool) -> bool:
        """Ask, and return the answer to the last call; with one process the flag. Called on all ranks."""
        if not has_peers():
            return flag
        answer = self._pending.read() if self._pending is not None else False
        self._pending = None if answer else PendingAny(flag)
        return answer

    def finish(self) -> None:
        """Finish the last exchange: the process group must not be left while it runs."""
        if self._pending is not None:
            self._pending.read()
            self._pending = None


@cache
def _side_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def _device() -> torch.device:
    """The device that the default group's backend takes tensors from."""
    on_gpu = "nccl" in dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

"""Collectives on numbers and on small values, which do nothing where there is one process.

Values travel as JSON bytes: torch's object collectives unpickle what a peer sends, which is code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import UserError


def has_peers() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks in place and return it."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def all_gather_bytes(data: bytes) -> list[bytes]:
    """The bytes of every rank, in the order of ranks; each may have another length."""
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
    """A JSON value of every rank, in the order of ranks."""
    return [json.loads(data) for data in all_gather_bytes(json.dumps(value).encode())]


def broadcast_json(value: Any) -> Any:
    """Rank 0's JSON value, on every rank; what the others pass is ignored."""
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


def _device() -> torch.device:
    """Where the default group's backend takes tensors from."""
    on_gpu = "nccl" in dist.get_backend()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def from_rank_zero(function: Callable[[], Any]) -> Any:
    """Call a function on rank 0 and return its JSON value on every rank.

    Raises: UserError: the function has raised it; then every rank does, so none waits for the others.
    """
    if not has_peers():
        return function()
    message: dict[str, Any] = {}
    if dist.get_rank() == 0:
        try:
            message = {"value": function()}
        except UserError as error:
            message = {"error": error.lines}
    message = broadcast_json(message)
    if "error" in message:
        raise UserError(*message["error"])
    return message["value"]

"""Sharded checkpoints: each rank writes its own part of the weights and of the optimizer state.

The files are safetensors as torch.distributed.checkpoint lays them out, so that its reader puts them together for any
number of ranks, and nothing in them is code. Its writer is not used: it plans by collectives that pickle, and would
need a second process group to write beside training.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

SHARDS_DIR = "shards"
# Of a state, what is written in shards; the rest is small, and rank 0 has all of it.
SHARDED = ("state_dict", "optimizer_states", "weight_average")
PLACE = "__shards__"
# What is on a GPU is in host memory while its file is written.
FILE_BYTES = 64 * 2**20
# What a state raises that names no tensors of its shards.
DAMAGED = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
Parts = dict[str, tuple[Tensor, list[int]]]


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take the tensors out of a state.

    Returns: (the state, with the name and the shape of a tensor in its place, and the tensors by name). Tied weights
    are one tensor with one name.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[object, str] = {}

    def take(node: Any, name: str) -> Any:
        """The node with descriptions in place of its tensors, which go to `tensors`."""
        if isinstance(node, Mapping):
            return {key: take(value, f"{name}.{key}") for key, value in node.items()}
        if isinstance(node, list):
            return [take(value, f"{name}.{place}") for place, value in enumerate(node)]
        # A number such as Adam's step stays where it is.
        if not isinstance(node, Tensor) or node.ndim == 0:
            return node
        owner = names.setdefault(_place_in_memory(node), name)
        tensors.setdefault(owner, node)
        dtype = str(node.dtype).removeprefix("torch.")
        return {PLACE: owner, "shape": list(node.shape), "dtype": dtype, "order": _order_in_memory(node)}

    rest = {key: take(value, key) if key in SHARDED else value for key, value in state.items()}
    return rest, tensors


def own_parts(tensors: Mapping[str, Tensor], rank: int, world_size: int) -> Parts:
    """What one rank writes: its shards, and of tensors that every rank holds in full its share.

    Returns: by name (values, place of their first element in the full tensor).
    """
    parts: Parts = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        if isinstance(tensor, DTensor):
            _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            local = tensor.to_local()
            if local.numel():
                parts[name] = local, list(offset)
        elif number % world_size == rank:
            parts[name] = tensor.detach(), [0] * tensor.ndim
    return parts


def write_shards(parts: Parts, folder: Path, rank: int) -> list[Path]:
    """Write one rank's parts. Returns: the files. Raises: OSError: the storage refuses them."""
    # torch.distributed.checkpoint takes half a second to import, which runs that save in full do without.
    from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, names in enumerate(_by_file(parts)):
        offsets = {name: {SAVED_OFFSETS_KEY: parts[name][1]} for name in names}
        metadata = {CUSTOM_METADATA_KEY: json.dumps(offsets), "format": "pt"}
        file = folder / f"rank-{rank:05d}-{number:05d}.safetensors"
        try:
            save_file({name: _compact(parts[name][0]) for name in names}, file, metadata)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(file)) from error
        files.append(file)
    return files


def join_shards(state: Mapping[str, Any], folder: Path, parts: Collection[str]) -> dict[str, Any]:
    """A state with full tensors in host memory again.

    Args: parts: of those that were written in shards, the ones to read; the others are left out.
    Raises: ValueError: the shards are not those of this state.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors: dict[str, Tensor] = {}

    def put(node: Any) -> Any:
        """The node with empty tensors in place of their descriptions."""
        if isinstance(node, Mapping) and PLACE in node:
            name = node[PLACE]
            if name not in tensors:
                tensors[name] = _empty(node)
            return tensors[name]
        if isinstance(node, Mapping):
            return {key: put(value) for key, value in node.items()}
        return [put(value) for value in node] if isinstance(node, list) else node

    chosen = {key: value for key, value in state.items() if key not in SHARDED or key in parts}
    try:
        joined = {key: put(value) if key in SHARDED else value for key, value in chosen.items()}
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    # The state may come from anybody. torch's own exception is not one of Python's Exception.
    except (CheckpointException, SafetensorError, *DAMAGED) as error:
        raise ValueError(f"{folder}: not the shards of {folder.parent.name}: {error}") from error
    return joined


def _order_in_memory(tensor: Tensor) -> list[int]:
    """The dimensions, from the one with the longest steps in memory to the shortest; not sorted for channels_last.

    Adam rounds differently where weights and their averages are not laid out alike, so a resume has to give it back.
    """
    return sorted(range(tensor.ndim), key=lambda dim: (-tensor.stride(dim), -tensor.shape[dim]))


def _empty(node: Mapping[str, Any]) -> Tensor:
    """Memory for a tensor of a state. Checkpoints from before the order was written have that of the shape."""
    shape, dtype = node["shape"], getattr(torch, node["dtype"])
    order = node.get("order", range(len(shape)))
    empty = torch.empty([shape[dim] for dim in order], dtype=dtype)
    return empty.permute([order.index(dim) for dim in range(len(shape))])


def _place_in_memory(tensor: Tensor) -> object:
    """Equal for tied weights: a state_dict has another object for each name, except where the strategy shards."""
    if isinstance(tensor, DTensor) or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _by_file(parts: Parts) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, (tensor, _) in parts.items():
        if names and size + tensor.nbytes > FILE_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names


def _compact(tensor: Tensor) -> Tensor:
    """The values alone: a view would be written with all that it is a view of."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

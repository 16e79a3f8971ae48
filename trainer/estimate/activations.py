"""Memory that a forward pass keeps for the backward pass, counted on a few samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(network: nn.Module, *inputs: Tensor, **named_inputs: Tensor) -> int:
    """Bytes of the tensors that autograd keeps in a forward pass, each storage once, the network's weights left out.

    Args: network: if built on the meta device, which is quick for any size, it gets memory with arbitrary values here.
    The pass itself runs on the CPU: on meta tensors torch imports its compiler, which takes longer.
    """
    if any(parameter.is_meta for parameter in network.parameters()):
        network.to_empty(device="cpu")
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # Holding the tensor keeps its storage's address from being reused.
            kept[storage._cdata] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        network(*inputs, **named_inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

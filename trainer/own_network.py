"""A trial of a network of the user's own, so that a wrong shape is named before the first step."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.config.own_parts import TARGET, OwnModelConfig
from trainer.errors import UserError
from trainer.parts import first_line

log = logging.getLogger(__name__)


def try_own_network(
    config: OwnModelConfig, network: nn.Module, example: Sequence[Tensor | None], shape: tuple[int, ...]
) -> tuple[int, int]:
    """Call a copy of a network in evaluation mode; its state and the random generators remain as they are.

    Args: example: the arguments of its forward. shape: that its output must have.
    Returns: floating-point operations of the call, and of it with its backward pass, as far as torch counts them, a
        multiply-add being two.
    Raises: UserError: forward fails, or returns something else.
    """
    word = f"model.{TARGET}={config.target}"
    shapes = ", ".join(str(tuple(value.shape)) for value in example if value is not None)
    counter = FlopCounterMode(display=False)
    try:
        trial = copy.deepcopy(network).cpu().eval()
        with torch.random.fork_rng(devices=[]), counter:
            output = trial(*example)
            forward = counter.get_total_flops()
            if isinstance(output, Tensor) and output.requires_grad:
                output.sum().backward()
    except Exception as error:
        log.exception("%s", word)
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{word}: its forward fails on {shapes}: {reason}", "the run's log has the traceback"
        ) from error
    found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    if found != shape:
        raise UserError(f"{word}: its forward on {shapes} returns {found}; a tensor of {shape} is needed")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"{word}: has no parameters to train")
    return forward, counter.get_total_flops()

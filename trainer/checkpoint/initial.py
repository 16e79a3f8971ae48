"""The weights that a new run starts from (init.from): which of them fit the networks, and which layers start anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.store import find_damage
from trainer.checkpoint.weights import read_weights
from trainer.collectives import broadcast_weights, decide_on_rank_0, has_peers
from trainer.config.schema import Config
from trainer.errors import UserError, counted
from trainer.module import TrainingModule
from trainer.optim.hidden import EMBEDDINGS
from trainer.run.files import MANIFEST_FILE
from trainer.run.init_source import source_file, source_key

NUM_NAMED = 3
# Only an average over all batches since the start would read it, and older files of torch's do not have it.
OPTIONAL = "num_batches_tracked"


def start_from_weights(config: Config, module: TrainingModule, device: torch.device) -> dict[str, Any]:
    """Fill the networks with the weights of init.from, before a strategy wraps them. Called on all ranks.

    Rank 0 reads the file and the others receive its weights, so that no rank starts from another file.

    Returns: facts for the record: file, sha256, num_loaded, new and unused names.
    Raises: UserError: the file is damaged, or its weights are those of another architecture.
    """
    facts = decide_on_rank_0(lambda: _fill(config, module))
    if has_peers():
        for network in module.networks().values():
            broadcast_weights(network, device)
    module.on_weights_loaded(facts["sha256"], facts["new"])
    return facts


def describe_weights(facts: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal about what `start_from_weights` has done."""
    lines = [f"weights of {facts['file']}: {counted(facts['num_loaded'], 'tensor')}; step and optimizer start anew"]
    if facts["new"]:
        lines.append(f"  at random values, of another shape or not in the file: {', '.join(facts['new'])}")
    if facts["unused"]:
        lines.append(f"  in the file, but not in the model: {_listing(facts['unused'])}")
    return lines


def _fill(config: Config, module: TrainingModule) -> dict[str, Any]:
    init = config.init
    file = source_file(init)
    if (file.parent / MANIFEST_FILE).exists() and (damage := find_damage(file.parent.resolve())):
        raise UserError(f"{source_key(init)}: {file.parent} is damaged ({damage})")
    try:
        weights = module.own_names(read_weights(file))
    except UserError as error:
        raise UserError(f"{source_key(init)}: {error.lines[0]}", *error.lines[1:]) from error
    targets = _targets(module)
    weights = _with_prefix(weights, targets, module)
    misfits = {name for name in targets if not _fits(name, targets, weights)}
    layers = [layer for layer in _replaceable_layers(module, weights) if layer & misfits]
    # A layer starts anew as a whole: a kept bias would belong to other weights.
    new = [name for name in targets if name in misfits.union(*layers)]
    prefixes = tuple({name.partition(".")[0] + "." for name in targets})
    unused = sorted(name for name in weights.keys() - targets.keys() if name.startswith(prefixes))
    mismatches = {name: _mismatch(name, targets[name], weights.get(name)) for name in targets if name in misfits}
    if init.strict and (misfits or unused):
        texts = [*mismatches.values(), *(f"{name} is not in the model" for name in unused)]
        raise UserError(
            f"{source_key(init)}: with init.strict=true every tensor must match; {len(texts)} do not",
            _listing(texts, "; "),
        )
    foreign = [text for name, text in mismatches.items() if not any(name in layer for layer in layers)]
    if foreign or not any(tensor.ndim >= 2 for name, tensor in targets.items() if name not in new):
        raise UserError(
            f"{source_key(init)}: weights of another architecture; {len(misfits)} of {len(targets)} tensors do not fit",
            _listing(foreign or list(mismatches.values()), "; "),
            "only the shapes of input and output layers may differ; the model must be that of the file",
        )
    with torch.no_grad():
        for name, tensor in targets.items():
            if name in weights and name not in new:
                tensor.copy_(weights[name])
    loaded = len(targets) - len(new)
    return {"file": str(file), "sha256": init.sha256, "num_loaded": loaded, "new": new, "unused": unused}


def _targets(module: TrainingModule) -> dict[str, Tensor]:
    """Parameters and buffers of all networks by their names in the module, as checkpoints have them."""
    prefixes = {id(child): name for name, child in module.named_modules()}
    return {
        f"{prefixes[id(network)]}.{name}": tensor
        for network in module.networks().values()
        for name, tensor in network.state_dict(keep_vars=True).items()
    }


def _with_prefix(
    weights: Mapping[str, Tensor], targets: Mapping[str, Tensor], module: TrainingModule
) -> Mapping[str, Tensor]:
    """The weights of one network that were saved without its name in the module."""
    networks = list(module.networks().values())
    if len(networks) > 1 or weights.keys() & targets.keys():
        return weights
    prefix = next(name for name, child in module.named_modules() if child is networks[0])
    return {f"{prefix}.{name}": tensor for name, tensor in weights.items()}


def _fits(name: str, targets: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is in the file with its shape, by itself or under the name of one that it is tied to."""
    tensor = targets[name]
    if name in weights:
        return weights[name].shape == tensor.shape
    tied = any(other is tensor and key in weights for key, other in targets.items())
    return tied or name.endswith(OPTIONAL)


def _mismatch(name: str, tensor: Tensor, found: Tensor | None) -> str:
    if found is None:
        return f"{name} is not in the file"
    return f"{name} is {tuple(tensor.shape)} in the model and {tuple(found.shape)} in the file"


def _replaceable_layers(module: TrainingModule, weights: Mapping[str, Tensor]) -> list[set[str]]:
    """Names of the tensors of each layer whose shape depends on the data: input layers, and output layers, which alone
    may also be missing.

    Embeddings are no part of them: another shape means another vocabulary.
    """
    names = {id(tensor): name for name, tensor in _targets(module).items()}
    found: list[set[str]] = []
    for network in module.networks():
        *inputs, output = module.outer_layers(network)
        for layer in (*inputs, output):
            tensors = {names[id(parameter)] for parameter in layer.parameters()}
            if layer is output or (tensors <= weights.keys() and not isinstance(layer, EMBEDDINGS)):
                found.append(tensors)
    return found


def _listing(texts: list[str], separator: str = ", ") -> str:
    more = len(texts) - NUM_NAMED
    return separator.join(texts[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")

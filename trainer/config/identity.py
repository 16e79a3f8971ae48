"""What defines an experiment, its hash, and the name of its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from trainer.config.schema import Config, Named, key_of

# Keys that say where, how fast or how often something is done, not what is computed. Whatever stands neither here nor
# in a node's own NOT_IDENTITY is part of the identity, so a new key is unless its author decides otherwise.
NOT_IDENTITY = frozenset(
    {
        "batch.micro_size",
        "checkpoint",
        "faults",  # run.json has the steps that were skipped
        "init",  # by the content of its file, see `identity`
        "launch",
        "logger",
        "performance",
        "plugins",
        "profiler",
        "run",
        "strategy.activation_checkpointing",
        "strategy.bucket_cap_mb",
        "strategy.bucket_size",
        "strategy.config",
        "strategy.cpu_offload",
        "strategy.name",
        "strategy.overlap_comm",
        "strategy.reshard_after_forward",
        "strategy.static_graph",
        "sweep",
        "trainer.accelerator",
        "trainer.benchmark",
        "trainer.detect_anomaly",
        "trainer.deterministic",
        "trainer.devices",
        "trainer.enable_progress_bar",
        "trainer.log_every_n_steps",
        "trainer.num_nodes",
        "trainer.num_sanity_val_steps",
    }
)
# Keys that were added after runs had been recorded, each with the value that does what was done before it. At that
# value, which conf/ has to give it, a key is left out, so that the same command finds an older unfinished run.
ADDED: Mapping[str, Any] = {
    "data.revision": None,
    "data.transform": None,
    "trainer.fast_dev_run": False,
    "trainer.max_time": None,
    "trainer.overfit_batches": 0.0,
}


def identity(config: Config[Any, Any, Any]) -> dict[str, Any]:
    """What defines the experiment, by dotted key: two runs with the same identity give the same curve."""
    without_effect = set(_without_effect(config))
    found = {key: value for key, value in _leaves(config, "") if key not in without_effect}
    init = config.init
    if init.from_ is not None or init.ckpt_path is not None:
        found["init"] = f"{'weights' if init.ckpt_path is None else 'state'} sha256:{init.sha256}"
    return found


def identity_hash(config: Config[Any, Any, Any]) -> str:
    """First eight hexadecimal digits of the identity's SHA-256."""
    return hash8(identity(config))


def recorded_identity(config: Config[Any, Any, Any], mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The identity as it is written to disk: what `mapping` holds as a reference to the environment stays one.

    Args: mapping: the configuration as written to config.yaml.
    """
    recorded = identity(config)
    for key in recorded:
        written: Any = mapping
        for part in key.split("."):
            written = written.get(part) if isinstance(written, Mapping) else None
        if isinstance(written, str) and "${" in written:
            recorded[key] = written
    return recorded


def run_name(config: Config[Any, Any, Any]) -> str:
    """`run.name`, or <model>-<data>-<hash8>."""
    return config.run.name or f"{config.model.name}-{config.data.name}-{identity_hash(config)}"


def hash8(value: Any) -> str:
    """First eight hexadecimal digits of the SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def config_to_mapping(node: Any) -> Any:
    """A typed configuration as plain containers, as `config.yaml`, the hash and W&B take it."""
    if is_dataclass(node) and not isinstance(node, type):
        return {key_of(field.name): config_to_mapping(getattr(node, field.name)) for field in fields(node)}
    if isinstance(node, (list, tuple)):
        return [config_to_mapping(value) for value in node]
    if isinstance(node, Mapping):
        return {str(key): config_to_mapping(value) for key, value in node.items()}
    return node


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all fields below a node that are not excluded by name."""
    own = node.NOT_IDENTITY if isinstance(node, Named) else frozenset()
    for field in fields(node):
        key, value = f"{prefix}{key_of(field.name)}", getattr(node, field.name)
        if key in NOT_IDENTITY or field.name in own:
            continue
        if is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        elif isinstance(value, Mapping) and all(is_dataclass(node) for node in value.values()):
            # A group whose members work together; without one it is no part of the identity.
            for name, member in value.items():
                yield from _leaves(member, f"{key}.{name}.")
        elif key not in ADDED or value != ADDED[key]:
            yield key, config_to_mapping(value)


def _without_effect(config: Config[Any, Any, Any]) -> Iterator[str]:
    """Keys that change nothing under the values of others. A run may so change its strategy and remain the same."""
    compression = getattr(config.strategy, "gradient_compression", "none")
    if compression == "none":
        yield "strategy.gradient_compression"
    if compression != "powersgd":
        yield from ("strategy.powersgd_rank", "strategy.powersgd_start_step")
    limits = (config.trainer.limit_val_batches, config.trainer.limit_test_batches)
    # The size of an evaluation batch decides how many samples a number of them holds, and nothing else.
    if not any(isinstance(limit, int) and limit for limit in limits):
        yield "batch.eval_size"

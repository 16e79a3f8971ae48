"""The configuration of a DeepSpeed engine: ZeRO from the strategy, everything else from the run's configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.config.schema import Config, StrategyConfig
from trainer.config.strategies import DeepSpeedFileConfig, FSDP2Config, ZeroConfig
from trainer.errors import Problem, UserError, shown

# DeepSpeed's keys, and the key of the run's configuration that sets each.
OWNERS = {
    "train_batch_size": "batch.global_size",
    "train_micro_batch_size_per_gpu": "batch.micro_size",
    "gradient_accumulation_steps": "batch.global_size, batch.micro_size and the number of ranks",
    "gradient_clipping": "trainer.gradient_clip_val",
    "bf16.enabled": "trainer.precision",
    "bf16.check_grad_overflow": "faults.on_nonfinite",
    "fp16.enabled": "trainer.precision",
    "torch_autocast.enabled": "trainer.precision",
    "torch_autocast.dtype": "trainer.precision",
}
UNSET = "???"  # Hydra's mark for a required value
# Sections for which the run's configuration has groups of its own.
FOREIGN = {"optimizer": "optimizer=...", "scheduler": "scheduler=...", "amp": "trainer.precision"}


def engine_config(config: Config, world_size: int) -> dict[str, Any]:
    """The `config` of `deepspeed.initialize` for each network. Raises: UserError: the file cannot be read."""
    strategy = config.strategy
    engine = read_file(strategy.config) if isinstance(strategy, DeepSpeedFileConfig) else {}
    if isinstance(strategy, ZeroConfig):
        engine = {"zero_optimization": _zero(strategy)}
    for path, value in owned_values(config, world_size).items():
        section, _, key = path.rpartition(".")
        node = engine.setdefault(section, {}) if section else engine
        node[key] = value
    # The optimizers are torch's, which ZeRO shards as well as its own.
    engine |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    # As with the other strategies, gradients are reduced in the type of the weights.
    engine["torch_autocast"]["lower_precision_safe_modules"] = []
    return _without_auto(engine)


def owned_values(config: Config, world_size: int) -> dict[str, Any]:
    """The values of OWNERS' keys that follow from the run's configuration."""
    share = config.batch.global_size // world_size
    micro = min(config.batch.fixed_micro_size or share, share)
    return {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        # Without this key DeepSpeed clips at 1.0.
        "gradient_clipping": config.trainer.gradient_clip_val or 0.0,
        "bf16.enabled": config.trainer.precision == "bf16-true",
        # As it does by itself in float32.
        "bf16.check_grad_overflow": True,
        "fp16.enabled": False,
        "torch_autocast.enabled": config.trainer.precision == "bf16-mixed",
        "torch_autocast.dtype": "bfloat16",
    }


def shards_parameters(strategy: StrategyConfig) -> bool:
    """Whether weights are sharded between steps. Raises: UserError: the file cannot be read."""
    if isinstance(strategy, DeepSpeedFileConfig):
        return _find(read_file(strategy.config), "zero_optimization.stage") == 3
    return isinstance(strategy, FSDP2Config) or (isinstance(strategy, ZeroConfig) and strategy.stage == 3)


def _zero(strategy: ZeroConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": strategy.stage,
        "overlap_comm": strategy.overlap_comm,
        "reduce_bucket_size": strategy.bucket_size,
        "allgather_bucket_size": strategy.bucket_size,
        "stage3_prefetch_bucket_size": strategy.bucket_size,
    }
    if strategy.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if strategy.stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def read_file(path: str) -> dict[str, Any]:
    """Read DeepSpeed's JSON file. Raises: UserError: it cannot be read, or is not a JSON object."""
    if path == UNSET:
        raise UserError(f"strategy.config={path}: name DeepSpeed's JSON file")
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"strategy.config={path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"strategy.config={path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"strategy.config={path}: not a JSON object")
    return content


def file_problems(config: Config, world_size: int) -> Iterator[Problem]:
    """Contradictions between a DeepSpeed file and the run's configuration; "auto" and a missing key are none."""
    assert isinstance(config.strategy, DeepSpeedFileConfig)
    path = config.strategy.config
    try:
        content = read_file(path)
    except UserError as error:
        yield Problem("strategy.config", path, error.lines[0].partition(": ")[2])
        return
    for key, ours in owned_values(config, world_size).items():
        theirs = _find(content, key)
        if theirs not in (None, "auto", ours):
            advice = f"{key} is {shown(theirs)}, but {OWNERS[key]} makes it {shown(ours)}; leave it out of the file"
            yield Problem("strategy.config", path, advice)
    for section, owner in FOREIGN.items():
        if section in content:
            yield Problem("strategy.config", path, f"{section} is set by {owner}; leave it out of the file")
    if _find(content, "zero_optimization.stage") not in (1, 2, 3):
        yield Problem("strategy.config", path, "zero_optimization.stage must be 1, 2 or 3; without ZeRO use ddp")


def _without_auto(node: dict[str, Any]) -> dict[str, Any]:
    """Drop keys that are "auto", as in files for other trainers, so that DeepSpeed's defaults apply."""
    kept = {key: value for key, value in node.items() if value != "auto"}
    return {key: _without_auto(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _find(content: Mapping[str, Any], path: str) -> Any:
    section, _, key = path.rpartition(".")
    node = content.get(section) if section else content
    return node.get(key) if isinstance(node, Mapping) else None

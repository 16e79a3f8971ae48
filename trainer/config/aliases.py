"""Keys and values as Lightning users type them, rewritten to this project's before composition.

config.yaml, the identity and the hash so hold the canonical key only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from trainer.config.loggers import FLAT_KEYS
from trainer.config.profilers import LIGHTNING_NAMES
from trainer.config.schema import TrainerConfig
from trainer.errors import UserError, shown

# Arguments of Lightning's Trainer without `trainer.`, and a habit of lightning-hydra-template.
KEYS = {
    **{field.name: f"trainer.{field.name}" for field in fields(TrainerConfig)},
    "trainer.strategy": "strategy",
    "trainer.profiler": "profiler",
    "print_config": "run.print_config",
    "extras.print_config": "run.print_config",
    **dict.fromkeys(("ckpt_path", "trainer.ckpt_path"), "init.ckpt_path"),
    **{f"logger.{name}": f"logger.wandb.{name}" for name in FLAT_KEYS},
}
VALUES = {
    "trainer.accelerator": {"gpu": "cuda"},
    "trainer.devices": {"-1": "auto"},
    "trainer.precision": {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"},
    "profiler": LIGHTNING_NAMES,
}
# Arguments of Lightning's Trainer that another key replaces here.
REPLACED = {
    "accumulate_grad_batches": "use batch.global_size (one step) and batch.micro_size (one pass); accumulation follows",
    "gradient_clip_algorithm": "clipping is always by norm: trainer.gradient_clip_val=NORM",
    "logger": "use logger=NAME",
    "callbacks": "use callbacks=NAME, monitor.* for early stopping and checkpoint.* for checkpoints",
    "enable_checkpointing": "use checkpoint.*; a run always keeps what it resumes from",
    "gpus": "use trainer.accelerator=cuda trainer.devices=N",
    "default_root_dir": "use run.root=DIR",
    "enable_model_summary": "the number of parameters is always printed",
    "use_distributed_sampler": "each sample always goes to exactly one rank",
    "limit_predict_batches": "the verb predict takes its inputs as arguments",
}
# Keys of lightning-hydra-template, and of other configurations around Lightning.
HABITS = {
    "trainer": "use strategy=NAME, and trainer.KEY=VALUE for accelerator, devices and others",
    "train": "without a verb it trains; the verb eval evaluates",
    "test": "the best weights are tested after training; trainer.limit_test_batches=0 leaves that out",
    "tags": "use logger.tags=[...]",
    "task_name": "use run.name=NAME",
    "paths": "use run.root=DIR and data.path=DIR",
    "extras": "print_config=true prints the configuration before training",
    "hparams_search": "use -m sweep=optuna with a range, as in 'optimizer.lr=interval(0.001,0.1)'",
    **dict.fromkeys(("batch_size", "data.batch_size"), "use batch.global_size=N, samples of a step over all ranks"),
    **dict.fromkeys(("num_workers", "data.num_workers"), "a thread prepares batches: performance.prefetch_batches=N"),
    **dict.fromkeys(("lr", "learning_rate", "model.lr", "model.optimizer.lr"), "use optimizer.lr=RATE"),
}
NO_MPS = "Apple's GPUs are not supported, since their ranks cannot average gradients; use cpu"


def replace_aliases(overrides: Sequence[Override]) -> list[str]:
    """The words of a command line with canonical keys and values; words that hold no alias are unchanged.

    Raises: UserError: an argument of Lightning's that another key replaces, GPU indices, or a key and its alias with
        different values.
    """
    words: list[str] = []
    given: dict[str, tuple[str, str]] = {}
    for override in overrides:
        typed, word = override.key_or_group, override.input_line or ""
        _check_replaced(typed, word)
        key = KEYS.get(typed, typed)
        # Other forms, such as +key=value and the choices of a sweep, have checks of their own.
        plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        if not plain or override.is_sweep_override() or (key == typed and key not in VALUES):
            words.append(word)
            continue
        value = _canonical(key, word)
        earlier = given.setdefault(key, (typed, value))
        if earlier != (typed, value) and earlier[0] != typed and earlier[1] != value:
            raise UserError(f"{word}: {earlier[0]}={shown(earlier[1])} is given as well, and means the same key {key}")
        words.append(f"{key}={value}")
    return words


def replace_values(mapping: DictConfig) -> DictConfig:
    """The same for what files have composed, such as a recipe of the user's own: replaces values in place.

    Raises: UserError: an argument of Lightning's that another key replaces, or GPU indices.
    """
    node: Any = OmegaConf.to_container(mapping, resolve=False)
    trainer = node.get("trainer") if isinstance(node.get("trainer"), dict) else {}
    for name, value in trainer.items():
        key = f"trainer.{name}"
        text = str(value).replace(" ", "")
        _check_replaced(key, f"{key}={text}")
        if key == "trainer.profiler":
            member = LIGHTNING_NAMES.get(text, text)
            raise UserError(f"{key}={text}: a group; in a file `defaults: [override /profiler: {member}]`")
        canonical = _canonical(key, f"{key}={text}")
        if canonical != text:
            OmegaConf.update(mapping, key, None if canonical == "null" else canonical)
    return mapping


def _check_replaced(key: str, word: str) -> None:
    node, _, leaf = key.rpartition(".")
    advice = HABITS.get(key) or HABITS.get(key.partition(".")[0] if node in ("paths", "extras") else "")
    if leaf in REPLACED and (node == "trainer" or (not node and leaf not in ("logger", "callbacks"))):
        advice = REPLACED[leaf]
    if advice and key not in KEYS:
        raise UserError(f"{word}: not a key here; {advice}")


def _canonical(key: str, word: str) -> str:
    """The value of a word, as text of Hydra's grammar."""
    value = word.partition("=")[2]
    if (key, value) == ("trainer.accelerator", "mps"):
        raise UserError(f"{word}: {NO_MPS}")
    if key == "trainer.devices" and value.startswith("["):
        indices = value.strip("[]").replace(" ", "")
        count = indices.count(",") + 1
        advice = f"takes a number; CUDA_VISIBLE_DEVICES={indices} with trainer.devices={count} selects these GPUs"
        raise UserError(f"{word}: trainer.devices {advice}")
    return VALUES.get(key, {}).get(value.strip("'\""), value)

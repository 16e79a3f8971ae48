"""What belongs to a run's identity: every key, unless it is listed as saying only where or how fast."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import SPIRALS_WORDS

from trainer.config.compose import compose_mapping, typed
from trainer.config.identity import ADDED, NOT_IDENTITY, identity, identity_hash
from trainer.config.schema import Config, Named

POWERSGD = ["strategy=ddp", "strategy.gradient_compression=powersgd"]
COUNTED = ["trainer.limit_val_batches=3"]
# Every member of the strategy group, since each has keys of its own; eval_size counts only beside a number of batches.
CONFIGURATIONS = {
    "powersgd": [*POWERSGD, *COUNTED],
    "fsdp2": ["strategy=fsdp2", *COUNTED],
    "zero": ["strategy=deepspeed_stage_2", *COUNTED],
    "slurm, adam, optuna": ["launch=slurm", "optimizer=adam", "sweep=optuna", "logger=wandb", *COUNTED],
    "ema": ["callbacks=ema", *COUNTED],
}
DEFAULT_HASHES = {"cnn": "bb7c2407", "dcgan": "d51fcef7", "bert": "a38917f2"}
# Each of these changes the weights, the best weights or the numbers of a run.
DECIDES = (
    "optimizer.lr", "scheduler.warmup_fraction", "seed", "batch.global_size", "model.width", "data.noise",
    "trainer.gradient_clip_val", "trainer.precision", "trainer.max_epochs", "trainer.max_steps",
    "trainer.limit_train_batches", "trainer.limit_val_batches", "trainer.limit_test_batches",
    "trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.sync_batchnorm",
    "monitor.metric", "monitor.mode", "monitor.patience", "monitor.min_delta",
)  # fmt: skip


def composed(*words: str) -> Config:
    return typed(compose_mapping([*SPIRALS_WORDS[:-2], *words]))[0]


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        elif members(value) is not None:
            for name, member in value.items():
                yield from leaves(member, f"{prefix}{field.name}.{name}.")
        else:
            yield f"{prefix}{field.name}"


def members(node: Any) -> Mapping[str, Any] | None:
    """The nodes of a group whose members work together, by name; None for anything else."""
    return node if isinstance(node, Mapping) and all(map(is_dataclass, node.values())) else None


def changed(node: Any, key: str) -> Any:
    """The configuration with another value of one key; that the value makes no sense does not matter to a hash."""
    name, _, rest = key.partition(".")
    if isinstance(node, Mapping):
        return {**node, name: changed(node[name], rest)}
    value = getattr(node, name)
    other = changed(value, rest) if rest else [*value, "other"] if isinstance(value, list) else f"other than {value}"
    # Without pydantic's checks, which would refuse it.
    copy = object.__new__(type(node))
    for field in fields(node):
        object.__setattr__(copy, field.name, other if field.name == name else getattr(node, field.name))
    return copy


def is_listed(config: Config, key: str) -> bool:
    parts = key.split(".")
    node = getattr(config, parts[0])
    node = node[parts[1]] if members(node) else node
    own = node.NOT_IDENTITY if isinstance(node, Named) else frozenset[str]()
    return parts[0] in NOT_IDENTITY or key in NOT_IDENTITY or parts[-1] in own


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_key_that_is_not_listed_changes_the_hash(name: str) -> None:
    config = composed(*CONFIGURATIONS[name])
    base = identity_hash(config)
    # A source that is named counts by the content of its file: tests/unit/test_init.py.
    keys = [key for key in leaves(config) if not key.startswith("init.")]
    assert len(keys) > 60
    for key in keys:
        assert (identity_hash(changed(config, key)) != base) == (not is_listed(config, key)), key
        assert (key in identity(config)) == (not is_listed(config, key) and key not in ADDED), key


@pytest.mark.parametrize("task", DEFAULT_HASHES)
def test_a_new_key_leaves_the_hash_of_older_runs(task: str) -> None:
    """Where this fails after a key was added: identity.ADDED takes it. After another default: the hash is a new one."""
    assert identity_hash(typed(compose_mapping([f"task={task}"]))[0]) == DEFAULT_HASHES[task]


def test_what_decides_weights_or_numbers_is_in_the_identity() -> None:
    known = identity(composed(*POWERSGD, *COUNTED))
    assert [key for key in DECIDES if key not in known] == []
    assert {"strategy.gradient_compression", "strategy.powersgd_rank", "strategy.powersgd_start_step"} <= known.keys()


def test_every_listed_key_exists() -> None:
    known = {key for words in CONFIGURATIONS.values() for key in leaves(composed(*words))} | {"strategy.config"}
    nodes = {key.partition(".")[0] for key in known}
    assert known | nodes >= NOT_IDENTITY


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=ddp"],
        ["strategy=fsdp2"],
        ["strategy=deepspeed_stage_1"],
        ["strategy=ddp", "strategy.powersgd_rank=8"],
        ["batch.eval_size=7"],
        ["launch=slurm"],
        ["run.root=elsewhere"],
    ],
    ids=str,
)
def test_how_a_run_is_computed_is_not_its_identity(words: list[str]) -> None:
    assert identity_hash(composed(*words)) == identity_hash(composed())


def test_a_location_is_not_the_identity_of_a_named_data_set(tmp_path: Path) -> None:
    words = ["task=cnn", "data=cifar10", "logger=none", "run.report=false"]
    here, there = (typed(compose_mapping([*words, *more]))[0] for more in ([], [f"data.path={tmp_path}"]))
    assert identity_hash(here) == identity_hash(there)
    assert identity_hash(here) != identity_hash(replace(here, seed=1))

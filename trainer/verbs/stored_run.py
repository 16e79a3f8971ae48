"""What the verbs that take a run directory have in common: their words, and ranks to work on the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.compose import compose_data
from trainer.config.own_parts import TARGET, find_targets
from trainer.config.schema import Config
from trainer.config.validation import validate
from trainer.config.versions import refuse_bad_versions
from trainer.errors import ConfigError, UserError, nearest
from trainer.launch.agent import start_ranks
from trainer.launch.discover import plan_world
from trainer.launch.process_group import process_group
from trainer.launch.rank_logs import set_up_rank_logs
from trainer.parts import trust
from trainer.run.opening import open_stored_run
from trainer.run.stored_config import StoredConfig, plugins_word, read_stored_config
from trainer.verbs.prepare import PreparedRun, parse_options

# Returns a JSON value, of which rank 0's counts.
RankFunction = Callable[[PreparedRun, Path, Sequence[str]], Any]

# Keys that say where and how fast a trained model is applied.
PLACE_KEYS = (
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "batch.eval_size", "launch.*", "performance.*",
)  # fmt: skip
EVALUATION_KEYS = (
    "trainer.precision", "trainer.deterministic", "trainer.benchmark", "trainer.limit_val_batches",
    "trainer.limit_test_batches", "model.path", "data.*",
)  # fmt: skip
# A trailing * stands for all keys below a node. Any other key would be without effect and is refused.
ACCEPTED_KEYS: Mapping[str, Sequence[str]] = {
    "eval": (*PLACE_KEYS, *EVALUATION_KEYS),
    "predict": (*PLACE_KEYS, "trainer.precision"),
    "export": (
        "batch.eval_size",
        "trainer.limit_val_batches",
        "trainer.limit_test_batches",
        "model.path",
        "data.*",
    ),
    "bench": PLACE_KEYS,  # a rank of bench scaling
    "fit": (),  # a rank that fit has started: everything is in config.yaml
}


@dataclass(frozen=True)
class StoredWords:
    """The words of a verb on a run.

    overrides: of keys with a dot, and plugins. data: words that compose another data set. own: the verb's arguments.
    targets: words that repeat what the run may import.
    """

    overrides: list[str]
    data: list[str]
    own: list[str]
    targets: list[str]
    config_dirs: list[Path]


def on_stored_run(verb: str, words: Sequence[str], on_rank: RankFunction) -> Any:
    """Run a verb on the run that `run=DIR` names.

    Args: words: run=DIR, overrides (keys with a dot, data=MEMBER and plugins=[...]), and the verb's own arguments.
        on_rank: called on every rank inside its process group, with the verb's own arguments only.
    Returns: what `on_rank` gave on rank 0. Raises: UserError: no such run, or wrong words. RankFailure.
    """
    directories = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    if len(directories) != 1:
        raise UserError(f"{verb}: needs run=DIR, as in {verb} run=outputs/cnn/NAME")
    run_dir = Path(directories[0])
    open_stored_run(run_dir)
    arguments = [word for word in words if not word.startswith("run=")]
    prepared = prepare_stored(verb, run_dir, arguments)
    config, world = prepared.config, prepared.world
    if world.launcher == "elastic":
        # A plugin may be known here because this process has imported it, which the ranks have not.
        others = [word for word in arguments if not word.startswith("plugins=")]
        return start_ranks(world, config.launch, verb, run_dir, [*plugins_word(config.plugins), *others])
    set_up_rank_logs(run_dir, world)
    with process_group(config, world):
        return on_rank(prepared, run_dir, own_arguments(verb, arguments))


def own_arguments(verb: str, arguments: Sequence[str]) -> list[str]:
    """The words that are the verb's own arguments, such as checkpoint=last or input=FILE."""
    return _split(verb, arguments).own


def prepare_stored(verb: str, run_dir: Path, arguments: Sequence[str]) -> PreparedRun:
    """See changed_config; and the ranks to work on the run. Raises: UserError: also for devices that are not here."""
    refuse_bad_versions()
    stored = changed_config(verb, run_dir, arguments)
    world = plan_world(stored.config.trainer, stored.config.launch)
    if verb != "predict":  # which needs neither the training data nor a batch that the ranks divide
        validate(stored.config, stored.task, world, trains=verb == "fit")
    return PreparedRun(stored.config, stored.mapping, stored.task, world)


def changed_config(verb: str, run_dir: Path, arguments: Sequence[str]) -> StoredConfig:
    """The run's configuration, changed as the words ask. Raises: UserError: a wrong key, value or data set."""
    words = _split(verb, arguments)
    stored = _read(run_dir, words)
    for word in (*words.overrides, *words.data):
        key = word.partition("=")[0]
        if "." in key and not _is_accepted(key, verb, stored.config):
            advice = f"it belongs to training; {verb} takes {', '.join(ACCEPTED_KEYS[verb])}"
            raise UserError(f"{word}: {verb} would ignore it", advice)
        if verb == "predict" and key == "trainer.precision" and _is_without_effect(stored):
            raise UserError(f"{word}: task={stored.task.name} never predicts in mixed precision, so it has no effect")
    if verb == "eval":
        _refuse_unconfirmed(stored, words)
    trust([_repeated_target(word, stored.mapping) for word in words.targets], words.config_dirs)
    if words.data and (problems := stored.task.validate(stored.config)):
        raise ConfigError(problems)
    return stored


def _refuse_unconfirmed(stored: StoredConfig, words: StoredWords) -> None:
    """Raises: UserError: the run itself confirms which code it runs, and the user's words do not."""
    for name in sorted(stored.config.task.CONFIRMS_CODE):
        value = getattr(stored.config.task, name)
        if value is not None and not any(word.startswith(f"task.{name}=") for word in words.overrides):
            raise UserError(
                f"task.{name}={value}: allows a file to run, and a stored run allows nothing by itself",
                f"if you trust the file, repeat it: task.{name}={value}",
            )


def _is_without_effect(stored: StoredConfig) -> bool:
    return stored.config.trainer.precision.endswith("-mixed") and not stored.task.predicts_mixed


def _repeated_target(word: str, mapping: Mapping[str, Any]) -> str:
    """An import path of the run that the user's word repeats. Raises: UserError: the run has another one there."""
    key, _, target = word.partition("=")
    own = dict(find_targets(mapping)).get(key.removesuffix(f".{TARGET}"))
    if own != target:
        has = f"{key}={own}" if own else f"no {key}"
        raise UserError(f"{word}: the run has {has}; its own parts can be repeated, not replaced")
    return target


def _split(verb: str, arguments: Sequence[str]) -> StoredWords:
    options, rest = parse_options(arguments, ("--config-dir",))
    words = StoredWords([], [], [], [], options.config_dirs)
    member = verb == "eval" and any(word.startswith("data=") for word in rest)
    for word in rest:
        key, equals, _ = word.partition("=")
        if not equals:
            raise UserError(f"{word}: not of the form key=value")
        if key.endswith(f".{TARGET}"):
            words.targets.append(word)
        elif member and (key == "data" or key.startswith("data.")):
            words.data.append(word)
        elif "." in key or key == "plugins":
            words.overrides.append(word)
        else:
            words.own.append(word)
    return words


def _read(run_dir: Path, words: StoredWords) -> StoredConfig:
    if not words.data:
        return read_stored_config(run_dir, words.overrides)
    stored = read_stored_config(run_dir, [word for word in words.overrides if word.startswith("plugins=")])
    data = compose_data(stored.task.name, words.data, words.config_dirs, stored.config.plugins)
    return read_stored_config(run_dir, words.overrides, {"data": data})


def _is_accepted(key: str, verb: str, config: Config) -> bool:
    own = {f"task.{name}" for name in config.task.EVALUATION} if verb == "eval" else set[str]()
    accepted = (*ACCEPTED_KEYS[verb], *own)
    return any(key == each or (each.endswith("*") and key.startswith(each[:-1])) for each in accepted)


def refuse_unknown(verb: str, words: Sequence[str], possible: Sequence[str]) -> dict[str, str]:
    """A verb's own arguments by name. Raises: UserError: the verb has no such argument."""
    arguments = {key: value for key, _, value in (word.partition("=") for word in words)}
    for word in words:
        key = word.partition("=")[0]
        if key not in possible:
            raise UserError(f"{word}: {verb} has no such argument; {nearest(key, ['run', 'data', *possible])}")
    return arguments

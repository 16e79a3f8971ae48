"""docs/reference.md is what the schema and conf/ give, and has every key with its unit."""

from functools import cache

from conftest import REPOSITORY

from trainer.config.compose import compose_mapping, typed
from trainer.config.identity import config_to_mapping
from trainer.config.reference import reference

# Numbers that count and measure nothing with a name of its own.
WITHOUT_UNIT = {
    "seed", "strategy.powersgd_rank", "strategy.powersgd_start_step", "model.hidden_size", "model.intermediate_size",
    "data.text", "data.text_pair", "data.label", "data.channels",
}  # fmt: skip


@cache
def rows() -> dict[str, list[str]]:
    """key: [type, default, unit, meaning], of the last member that has the key."""
    lines = [line.strip("| ").split(" | ") for line in reference().split("\n") if line.startswith("| `")]
    assert all(len(line) == 5 for line in lines), [line for line in lines if len(line) != 5]
    return {key.strip("`"): rest for key, *rest in lines}


def test_the_committed_page_is_current() -> None:
    assert (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8") == reference()


def test_it_has_every_key_of_every_task() -> None:
    known = rows()
    for words in (["task=cnn"], ["task=dcgan", "strategy=fsdp2"], ["task=bert", "launch=slurm", "sweep=optuna"]):
        for node, values in config_to_mapping(typed(compose_mapping(words))[0]).items():
            keys = [node] if not isinstance(values, dict) else [f"{node}.{name}" for name in values]
            if node == "logger":  # its members work together
                keys = [f"{node}.{name}.{key}" for name, member in values.items() for key in member]
            assert [key for key in keys if key not in known and not key.endswith(".name")] == []


def test_a_row_has_type_default_unit_and_meaning() -> None:
    known = rows()
    assert known["trainer.log_every_n_steps"][:3] == ["int >= 1", "`10`", "steps"]
    assert known["trainer.log_every_n_steps"][3] == "Steps between two records of training metrics."
    assert known["launch.timeout_s"][1:3] == ["`600.0`", "s"]
    assert known["strategy.bucket_cap_mb"][2] == "MiB"
    assert known["trainer.val_check_interval"][2] == "steps or share"
    assert known["launch.gpus_per_node"][2] == "GPUs"
    assert known["task.loss"][1] == "`non_saturating`"
    assert all(meaning for *_, meaning in known.values())


def test_whole_numbers_have_a_unit() -> None:
    numbers = {key: row for key, row in rows().items() if "int" in row[0].split()}
    assert len(numbers) > 40
    assert {key for key, row in numbers.items() if not row[2]} <= WITHOUT_UNIT

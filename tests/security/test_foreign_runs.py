"""Runs, checkpoints, recipes and ledgers of somebody else: nothing executes, nothing outside is read or written.

Each case changes one thing in a copy of an innocent artefact and gives the words of a command, which
`test_innocent_ones_work` gives without the change.
"""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SPIRALS  # pyright: ignore[reportAttributeAccessIssue]
from foreign import WORDS, Place, check_refused, eval_words, predict_words

from trainer.cli import main

# --- runs


def run_names_a_plugin(place: Place) -> list[str]:
    place.configure(plugins=[str(place.plugin())], task={"name": "evil"})
    return eval_words(place)


def run_has_yaml_tags(place: Place) -> list[str]:
    with (place.run / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.mknod [{place.marker}]\n")
    return predict_words(place)


def run_has_a_yaml_bomb(place: Place) -> list[str]:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    with (place.run / "config.yaml").open("a") as file:
        file.write(bomb)
    return eval_words(place)


def run_is_nested(place: Place) -> list[str]:
    (place.run / "config.yaml").write_text("a: " + "[" * 100_000 + "]" * 100_000)
    return predict_words(place)


def record_is_nested(place: Place) -> list[str]:
    (place.run / "run.json").write_text("[" * 100_000 + "]" * 100_000)
    return eval_words(place)


def run_has_terminal_escapes(place: Place) -> list[str]:
    place.configure(task={"name": "\x1b]0;title\x07\x1b[2J"})
    return [*eval_words(place), f"plugins=[{SPIRALS}]"]


def lock_is_a_link(place: Place) -> list[str]:
    place.link(".lock", place.victim)
    return place.unfinished()


def lock_is_a_link_within_the_run(place: Place) -> list[str]:
    place.link(".lock", Path("config.yaml"))
    return place.unfinished()


def logs_are_elsewhere(place: Place) -> list[str]:
    place.link("logs", place.outside)
    return eval_words(place)


def checkpoints_are_elsewhere(place: Place) -> list[str]:
    place.link("checkpoints", place.outside)
    return place.unfinished()


def metrics_are_elsewhere(place: Place) -> list[str]:
    place.link("metrics.jsonl", place.victim)
    return place.unfinished()


def staging_is_elsewhere(place: Place) -> list[str]:
    place.link("checkpoints/.step-00000099", place.outside)
    return place.unfinished()


def weights_are_elsewhere(place: Place) -> list[str]:
    place.link("model.safetensors", place.victim)
    return predict_words(place)


def converted_run_has_links(place: Place) -> list[str]:
    place.link(".model-last.safetensors", place.victim)
    return ["convert", f"run={place.run}"]


def reported_run_has_links(place: Place) -> list[str]:
    place.link("metrics.jsonl", place.victim)
    return ["report", f"run={place.run}"]


def uploaded_run_has_links(place: Place) -> list[str]:
    place.link("report.html", place.victim)
    return ["sync", f"run={place.run}"]


def drawn_run_has_links(place: Place) -> list[str]:
    place.link("dashboard.json", place.victim)
    return ["dashboard", f"run={place.run}"]


# --- checkpoints


def checkpoint_is_code(place: Place) -> list[str]:
    torch.save({"state_dict": place.payload()}, place.checkpoint / "state.ckpt")
    place.write_manifest()
    return [*eval_words(place), f"plugins=[{SPIRALS}]", "checkpoint=last"]


def resumed_checkpoint_is_code(place: Place) -> list[str]:
    for manifest in place.run.glob("checkpoints/step-*/manifest.json"):
        torch.save({"state_dict": place.payload()}, manifest.parent / "state.ckpt")
        place.link("checkpoints/last", Path(manifest.parent.name))
        place.write_manifest()
    return place.unfinished()


def converted_file_is_code(place: Place) -> list[str]:
    torch.save({"state_dict": place.payload()}, "evil.ckpt")
    return ["convert", "checkpoint=evil.ckpt", "out=out.safetensors"]


def weights_are_a_bare_pickle(place: Place) -> list[str]:
    Path("evil.pt").write_bytes(pickle.dumps(place.payload()))
    return [*WORDS, "run.name=other", "init.from=evil.pt"]


def manifest_names_a_file_elsewhere(place: Place) -> list[str]:
    content = place.victim.read_bytes()
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    place.write_manifest(**{str(place.victim): entry})
    return ["convert", f"run={place.run}", "checkpoint=last"]


def manifest_climbs(place: Place) -> list[str]:
    content = place.victim.read_bytes()
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    place.write_manifest(**{os.path.relpath(place.victim, place.checkpoint): entry})
    return [*eval_words(place), f"plugins=[{SPIRALS}]", "checkpoint=last"]


def manifest_lists_no_state(place: Place) -> list[str]:
    file = place.checkpoint / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "files": {}}))
    return ["convert", f"run={place.run}", "checkpoint=last"]


# --- recipes and ledgers


def recipe_names_a_plugin(place: Place) -> list[str]:
    return place.recipe(f"plugins: [{place.plugin()}]\n")


def recipe_is_a_bomb(place: Place) -> list[str]:
    levels = "".join(f"  b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 10))
    return place.recipe(f"x:\n  b0: &b0 [x]\n{levels}")


def planned_recipe(place: Place) -> list[str]:
    return ["plan", *recipe_names_a_plugin(place)]


def diagnosed_recipe(place: Place) -> list[str]:
    return ["doctor", *recipe_names_a_plugin(place)]


def swept_recipe(place: Place) -> list[str]:
    return ["-m", *recipe_names_a_plugin(place), "seed=1,2"]


def ledger_has_other_words(place: Place) -> list[str]:
    words = ["-m", *(word for word in WORDS if word != "run.name=run"), "seed=1,2", "sweep.parallel=1"]
    from trainer.verbs.prepare import take_options
    from trainer.verbs.sweep.jobs import plan_sweep

    options, overrides = take_options(words)
    plan = plan_sweep(overrides, options)
    plan.directory.mkdir(parents=True)
    job = {"number": 1, "words": ["seed=1", f"plugins=[{place.plugin()}]"]}
    (plan.directory / "ledger.json").write_text(json.dumps({"jobs": [job]}))
    return words


def ledger_is_nested(place: Place) -> list[str]:
    words = ledger_has_other_words(place)
    (ledger,) = Path("outputs").rglob("ledger.json")
    ledger.write_text("[" * 100_000 + "]" * 100_000)
    return words


def diagnosed_bomb(place: Place) -> list[str]:
    return ["doctor", *recipe_is_a_bomb(place)]


def swept_bomb(place: Place) -> list[str]:
    return ["-m", *recipe_is_a_bomb(place), "seed=1,2"]


# --- exports and reports


def exported_run_names_a_plugin(place: Place) -> list[str]:
    run_names_a_plugin(place)
    return ["export", f"run={place.run}", "format=safetensors"]


def exported_run_has_other_weights(place: Place) -> list[str]:
    place.link("model.safetensors", place.victim)
    return ["export", f"run={place.run}", "format=safetensors", f"plugins=[{SPIRALS}]"]


def exports_are_elsewhere(place: Place) -> list[str]:
    place.link("export", place.outside)
    return ["export", f"run={place.run}", "format=safetensors", f"plugins=[{SPIRALS}]"]


CASES: dict[Callable[[Place], list[str]], str] = {
    run_names_a_plugin: "imports no code by itself",
    run_has_yaml_tags: "no readable config.yaml",
    run_has_a_yaml_bomb: "stands for more than",
    run_is_nested: "nested more than",
    record_is_nested: "no readable run.json",
    run_has_terminal_escapes: r"\x1b]0;title\x07",
    lock_is_a_link: "symbolic link",
    lock_is_a_link_within_the_run: "symbolic link",
    logs_are_elsewhere: "symbolic link",
    checkpoints_are_elsewhere: "symbolic link",
    metrics_are_elsewhere: "symbolic link",
    staging_is_elsewhere: "symbolic link",
    weights_are_elsewhere: "symbolic link",
    converted_run_has_links: "symbolic link",
    reported_run_has_links: "symbolic link",
    uploaded_run_has_links: "symbolic link",
    drawn_run_has_links: "symbolic link",
    checkpoint_is_code: "would run code",
    resumed_checkpoint_is_code: "would run code",
    converted_file_is_code: "would run code",
    weights_are_a_bare_pickle: "would run code",
    manifest_names_a_file_elsewhere: "outside of the checkpoint",
    manifest_climbs: "outside of the checkpoint",
    manifest_lists_no_state: "does not list state.ckpt",
    recipe_names_a_plugin: "imports no code by itself",
    recipe_is_a_bomb: "stands for more than",
    planned_recipe: "imports no code by itself",
    diagnosed_recipe: "imports no code by itself",
    swept_recipe: "imports no code by itself",
    ledger_has_other_words: "not of this sweep",
    ledger_is_nested: "damaged",
    diagnosed_bomb: "stands for more than",
    swept_bomb: "stands for more than",
    exported_run_names_a_plugin: "imports no code by itself",
    exported_run_has_other_weights: "symbolic link",
    exports_are_elsewhere: "symbolic link",
}


@pytest.mark.parametrize("plant", CASES, ids=lambda plant: plant.__name__)
def test_a_foreign_run_is_refused(
    plant: Callable[[Place], list[str]],
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_refused(plant, CASES[plant], place, capsys, monkeypatch)


def test_innocent_ones_work(place: Place) -> None:
    assert main(eval_words(place)) == 0
    assert main(predict_words(place)) == 0
    assert main(["convert", f"run={place.run}"]) == 0
    (place.run / "link").symlink_to("config.yaml")
    assert main(place.unfinished()) == 0
    assert main(["plan", *place.recipe("seed: 3\n")]) == 0

"""Every verb opens a run by the same function: a poisoned one executes nothing, and ends each of them with 2.

Besides the verbs: init.from and ckpt_path, a resumed run, a nested `run:` reference, and Python's functions.
"""

import json
import os
import shutil
from collections.abc import Callable

import pytest
from conftest import SPIRALS  # pyright: ignore[reportAttributeAccessIssue]
from foreign import PRIVATE, WORDS, Place, check_refused, eval_words, predict_words

import trainer
from trainer.cli import main
from trainer.errors import UserError

FRESH = [*(word for word in WORDS if word != "run.name=run"), "run.name=other"]


def resume(place: Place) -> list[str]:
    record = place.run / "run.json"
    try:
        content = json.loads(record.read_text()[:100_000])
        record.write_text(json.dumps({**content, "status": "stopped"}))
    except (ValueError, RecursionError, TypeError):
        pass  # planted there
    return WORDS


def features(place: Place) -> list[str]:
    words = ["plan", "task=dcgan", "data=digits", "logger=none", "trainer.accelerator=cpu"]
    return [*words, f"task.features=run:{place.run}"]


def dashboards(place: Place) -> list[str]:
    return ["dashboard", f"run={place.run}"]


def with_plugin(words: list[str]) -> list[str]:
    return [*words, f"plugins=[{SPIRALS}]"]


# How each opens the run that is poisoned.
OPENERS: dict[str, Callable[[Place], list[str]]] = {
    "eval": lambda place: with_plugin(eval_words(place)),
    "predict": lambda place: with_plugin(predict_words(place)),
    "predict --help": lambda place: ["predict", "--help", f"run={place.run}", f"plugins=[{SPIRALS}]"],
    "convert": lambda place: ["convert", f"run={place.run}"],
    "export": lambda place: with_plugin(["export", f"run={place.run}", "format=safetensors"]),
    "export deploy": lambda place: with_plugin(["export", f"run={place.run}", "deploy=triton"]),
    "serve": lambda place: ["serve", f"run={place.run}", "port=0"],
    "report": lambda place: ["report", f"run={place.run}"],
    "sync": lambda place: ["sync", f"run={place.run}"],
    "dashboard": dashboards,
    "bench inference": lambda place: with_plugin(["bench", "inference", f"run={place.run}"]),
    "bench serve": lambda place: ["bench", "serve", f"run={place.run}"],
    "init.from": lambda place: [*FRESH, f"init.from={place.run}"],
    "init.from a file": lambda place: [*FRESH, f"init.from={place.run / 'checkpoints' / 'last' / 'state.ckpt'}"],
    "init.ckpt_path": lambda place: [*FRESH, f"init.ckpt_path={place.run}"],
    "plan": lambda place: ["plan", *FRESH, f"init.from={place.run}"],
    "resume": resume,
}


def link_leads_out(place: Place) -> str:
    place.link("inputs.json", place.victim)
    return "symbolic link"


def folder_leads_out(place: Place) -> str:
    (place.run / "tokenizer").symlink_to(place.outside)
    return "symbolic link"


def record_leads_out(place: Place) -> str:
    (place.outside / "run.json").write_text(json.dumps({"status": "stopped", "attempts": [], "secret": PRIVATE}))
    place.link("run.json", place.outside / "run.json")
    return "symbolic link"


def config_is_huge(place: Place) -> str:
    with (place.run / "config.yaml").open("a") as file:
        file.write("x: [" + "a, " * 600_000 + "]\n")
    return "is larger than 1 MiB"


def config_is_a_bomb(place: Place) -> str:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
    with (place.run / "config.yaml").open("a") as file:
        file.write(bomb)
    return "stands for more than"


def record_is_deep(place: Place) -> str:
    (place.run / "run.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    return "no readable run.json"


def record_is_a_list(place: Place) -> str:
    (place.run / "run.json").write_text("[1]")
    return "run.json is damaged"


def a_file_is_a_pipe(place: Place) -> str:
    (place.run / "inputs.json").unlink(missing_ok=True)
    os.mkfifo(place.run / "inputs.json")
    return "neither a file nor a folder"


POISONS = [
    link_leads_out, folder_leads_out, record_leads_out, config_is_huge, config_is_a_bomb, record_is_deep,
    record_is_a_list, a_file_is_a_pipe,
]  # fmt: skip


# By default each verb meets two poisons, and each poison four verbs.
USUAL_POISONS = (link_leads_out, config_is_a_bomb)
USUAL_OPENERS = ("eval", "convert", "report", "resume")


def marks(is_usual: bool) -> list[pytest.MarkDecorator]:
    return [] if is_usual else [pytest.mark.slow]


# Help reads the configuration alone.
PAIRS = [
    pytest.param(
        opener,
        poison,
        id=f"{opener}-{poison.__name__}",
        marks=marks(poison in USUAL_POISONS or opener in USUAL_OPENERS),
    )
    for opener in OPENERS
    for poison in POISONS
    if opener != "predict --help" or poison not in (record_is_deep, record_is_a_list)
]


@pytest.mark.parametrize(("opener", "poison"), PAIRS)
def test_every_verb_refuses_a_poisoned_run(
    opener: str,
    poison: Callable[[Place], str],
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = poison(place)
    check_refused(OPENERS[opener], expected, place, capsys, monkeypatch)


# Verbs that build nothing of the run read `_target_` as any other text.
BUILDS = ("eval", "predict", "export", "bench inference")
# These train, or start a server's packages.
TAKE_LONGER = ("init.from", "init.from a file", "init.ckpt_path", "bench serve", "dashboard")


@pytest.mark.parametrize("opener", [pytest.param(each, marks=marks(each not in TAKE_LONGER)) for each in OPENERS])
def test_no_verb_imports_what_a_run_names(
    opener: str, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.directory / "planted.py").write_text(f"import os\nos.mknod({str(place.marker)!r})\n")
    optimizer = {"name": "own", "_target_": "planted.Optimizer", "lr": 0.1}
    place.configure(optimizer=optimizer, model={"name": "own", "_target_": "planted.Network"})
    monkeypatch.syspath_prepend(str(place.directory))
    code = main([word for word in OPENERS[opener](place) if word != "port=0"])
    printed = "".join(capsys.readouterr())
    assert not place.marker.exists(), "code was executed"
    assert "Traceback" not in printed
    assert code == 2 if opener in BUILDS else code in (0, 2), printed


@pytest.mark.parametrize("poison", [link_leads_out, config_is_a_bomb, record_is_deep], ids=lambda each: each.__name__)
@pytest.mark.parametrize("function", ["load", "evaluate", "predict"])
def test_python_refuses_it_too(function: str, poison: Callable[[Place], str], place: Place) -> None:
    expected = poison(place)
    arguments = {"input": "points.json"} if function == "predict" else {}
    with pytest.raises(UserError, match=expected):
        getattr(trainer, function)(place.run, f"plugins=[{SPIRALS}]", **arguments)
    assert not place.marker.exists()


def test_a_table_of_runs_names_the_poisoned_one(place: Place) -> None:
    shutil.copytree(place.run, place.run.with_name("innocent"))
    config_is_a_bomb(place)
    table = trainer.runs(place.directory / "outputs").set_index("run_dir")
    assert sorted(table["status"]) == ["damaged", "finished"]
    assert "stands for more than" in table.loc[str(place.run), "problem"]


def test_a_nested_reference_is_opened_the_same_way(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    link_leads_out(place)
    check_refused(features, "symbolic link", place, capsys, monkeypatch)

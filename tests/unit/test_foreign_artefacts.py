"""Runs, checkpoints, recipes, ledgers, models and data sets of somebody else: nothing executes, nothing outside is
read or written.

Each case changes one thing in a copy of an innocent artefact and gives the words of a command, which
`test_innocent_ones_work` gives without the change.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tomllib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY, SPIRALS, SPIRALS_WORDS
from PIL import Image

from trainer.cli import main
from trainer.config import versions
from trainer.config.compose import compose_mapping, without_secrets
from trainer.config.yaml_limits import find_excess
from trainer.data import sources
from trainer.data.images import decode
from trainer.errors import UserError

WORDS = [*SPIRALS_WORDS, "run.name=run", "trainer.max_epochs=1", "trainer.enable_progress_bar=false"]
PRIVATE = "private-0123456789"
STEP = "step-00000001"


@dataclass
class Place:
    """outside: what must stay as it is. run: a copy of a finished run. marker: what executed code would create."""

    directory: Path
    outside: Path
    run: Path
    marker: Path

    @property
    def victim(self) -> Path:
        """A file of the user's, elsewhere."""
        return self.outside / "victim"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return (self.run / "checkpoints" / "last").resolve()

    def configure(self, **values: Any) -> None:
        """Change nodes of the run's config.yaml."""
        file = self.run / "config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))

    def unfinished(self) -> list[str]:
        """Let the same command resume the run. Returns: it."""
        record = self.run / "run.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "status": "stopped"}))
        return WORDS

    def link(self, name: str, target: Path) -> None:
        """Put a link in the place of a file or folder of the run."""
        path = self.run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def plugin(self) -> Path:
        """A folder with a task that creates the marker when it is imported."""
        folder = self.directory / "evil"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "config.py").write_text(f"import os\nos.mknod({str(self.marker)!r})\n")
        return folder

    def recipe(self, text: str) -> list[str]:
        """A folder of recipes with one called evil. Returns: the words that choose it."""
        folder = self.directory / "recipes" / "experiment"
        folder.mkdir(parents=True)
        (folder / "evil.yaml").write_text("# @package _global_\n" + text)
        return [
            "task=cnn",
            "logger=none",
            "trainer.accelerator=cpu",
            f"--config-dir={folder.parent}",
            "experiment=evil",
        ]

    def payload(self) -> "Payload":
        """What creates the marker when it is unpickled."""
        return Payload(str(self.marker))

    def write_manifest(self, **files: Any) -> None:
        """Let the manifest fit the files of the checkpoint, and others."""
        file = self.checkpoint / "manifest.json"
        manifest = json.loads(file.read_text())
        for name in manifest["files"]:
            content = (self.checkpoint / name).read_bytes()
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["files"].update(files)
        file.write_text(json.dumps(manifest))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mknod, (self.marker,))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(WORDS) == 0
    return directory / "outputs"


@pytest.fixture
def place(finished: Path, in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("TRAINER_CACHE", str(in_directory / "cache"))
    shutil.copytree(finished, in_directory / "outputs", symlinks=True)
    outside = in_directory / "outside"
    outside.mkdir()
    (outside / "victim").write_text(PRIVATE)
    (in_directory / "points.json").write_text("[[0.1, 0.2]]")
    return Place(in_directory, outside, in_directory / "outputs" / "spirals" / "run", in_directory / "marker")


def eval_words(place: Place) -> list[str]:
    return ["eval", f"run={place.run}"]


def predict_words(place: Place) -> list[str]:
    return ["predict", f"run={place.run}", "input=points.json"]


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


# --- data sets and images


IMAGES = ["task=cnn", "data=image_folder", "data.path=images", "logger=none", "trainer.accelerator=cpu",
          "trainer.max_steps=1", "data.image_size=16", "trainer.enable_progress_bar=false"]  # fmt: skip


def images(place: Place, form: str = "PNG") -> Path:
    """An innocent set: two classes of eight images."""
    folder = place.directory / "images"
    for number in range(16):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path, format=form)
    return folder


def set_has_a_link(place: Place) -> list[str]:
    (images(place) / "a" / "99.png").symlink_to(place.victim)
    return IMAGES


def set_has_a_linked_folder(place: Place) -> list[str]:
    (images(place) / "c").symlink_to(place.outside)
    return IMAGES


def set_holds_postscript(place: Place) -> list[str]:
    images(place, form="EPS")
    return IMAGES


def set_holds_a_bomb(place: Place) -> list[str]:
    """A few kilobytes that stand for a billion pixels."""
    folder = images(place)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )
    (folder / "a" / "0.png").write_bytes(png)
    return IMAGES


def rows_name_files(place: Place) -> list[str]:
    import pyarrow as pa
    from pyarrow import parquet

    images(place)
    place.directory.joinpath("images", "a", "0.png").rename(place.outside / "0.png")
    shutil.rmtree("images")
    Path("images").mkdir()
    rows = [{"image": {"bytes": None, "path": str(place.outside / "0.png")}, "label": i % 2} for i in range(16)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"image": pa.array([r["image"] for r in rows], kind), "label": [r["label"] for r in rows]}
    parquet.write_table(pa.table(columns), "images/train.parquet")
    return IMAGES


def card_names_files(place: Place) -> list[str]:
    (images(place) / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: ../outside/*\n---\n")
    return IMAGES


def card_names_a_url(place: Place) -> list[str]:
    header = "configs:\n- config_name: default\n  data_files:\n    train: http://127.0.0.1:9/rows.csv\n"
    (images(place) / "README.md").write_text(f"---\n{header}---\n")
    return IMAGES


def set_is_hdf5(place: Place) -> list[str]:
    (images(place) / "rows.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    return IMAGES


# --- models


BERT = ["plan", "task=bert", "model=minilm", "logger=none", "trainer.accelerator=cpu"]


def model_imports_a_package(place: Place) -> list[str]:
    package = place.directory / "innocent"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text(f"import os\nos.mknod({str(place.marker)!r})\n")
    return [*BERT, "model.path=package://innocent.inner/model"]


def model(place: Place, **config: Any) -> Path:
    folder = place.directory / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def model_names_other_weights(place: Place) -> list[str]:
    model(place, transformers_weights="../outside/victim")
    return [*BERT, "model.path=model"]


def index_names_other_weights(place: Place) -> list[str]:
    folder = model(place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside/x.safetensors"}}))
    return [*BERT, "model.path=model"]


def model_is_pickled(place: Place) -> list[str]:
    folder = model(place)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(place.payload()))
    return [*BERT, "model.path=model"]


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
    set_has_a_link: "outside of the set",
    set_has_a_linked_folder: "outside of the set",
    set_holds_postscript: "not an image",
    set_holds_a_bomb: "900000000 pixels",
    rows_name_files: "outside of the set",
    card_names_files: "outside of the set",
    card_names_a_url: "outside of the set",
    set_is_hdf5: "is HDF5",
    model_imports_a_package: "without dots",
    model_names_other_weights: "transformers_weights",
    index_names_other_weights: "outside of the folder",
    model_is_pickled: "pickled",
}


@pytest.mark.parametrize("plant", CASES, ids=lambda plant: plant.__name__)
def test_a_foreign_artefact_is_refused(
    plant: Callable[[Place], list[str]],
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(place.directory))
    words = plant(place)
    before = {path: path.read_bytes() for path in place.outside.rglob("*") if path.is_file()}
    code = main(words)
    printed = "".join(capsys.readouterr())
    assert not place.marker.exists(), "code was executed"
    assert code == 2, printed
    assert CASES[plant] in printed
    assert "\x1b" not in printed and PRIVATE not in printed and "Traceback" not in printed
    assert {path: path.read_bytes() for path in place.outside.rglob("*") if path.is_file()} == before
    written = [path for path in place.directory.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not any(PRIVATE.encode() in path.read_bytes() for path in written if path.parent != place.outside)


def test_innocent_ones_work(place: Place) -> None:
    assert main(eval_words(place)) == 0
    assert main(predict_words(place)) == 0
    assert main(["convert", f"run={place.run}"]) == 0
    (place.run / "link").symlink_to("config.yaml")
    assert main(place.unfinished()) == 0
    assert main(["plan", *place.recipe("seed: 3\n")]) == 0
    images(place)
    (place.directory / "images" / "a" / "98.png").symlink_to("0.png")
    (place.directory / "images" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert main(IMAGES) == 0


def test_a_stored_run_does_not_confirm_code_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=dcgan", "logger=none", "task.features=torchscript:net.pt", f"task.features_sha256={'0' * 64}"]
    mapping = without_secrets(compose_mapping(words))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(mapping))
    (tmp_path / "run.json").write_text("{}")
    assert main(["eval", f"run={tmp_path}"]) == 2
    assert "allows nothing by itself" in capsys.readouterr().err
    assert main(["eval", f"run={tmp_path}", f"task.features_sha256={'0' * 64}"]) == 2
    assert "no model.safetensors yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "version"),
    [("lightning", "2.6.3"), ("pytorch-lightning", "2.6.2"), ("torch", "2.9.1+cu130"), ("pillow", "12.1.0")],
)
def test_a_banned_version_is_refused_before_it_is_imported(
    package: str, version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = versions.version
    monkeypatch.setattr(versions, "version", lambda name: version if name == package else installed(name))
    assert main(["plan", "task=cnn"]) == 2
    assert f"{package} {version} is installed" in capsys.readouterr().err


def test_oldest_versions_are_those_of_the_package() -> None:
    requirements = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    for name, oldest in versions.OLDEST.items():
        assert any(each.startswith(f"{name}>={oldest}") for each in requirements), name
    for name, banned in versions.MALICIOUS.items():
        assert name == "lightning" or all(any(f"!={each}" in line for line in requirements) for each in banned)


def test_modules_in_the_working_directory_take_no_package_s_place(tmp_path: Path) -> None:
    """In a new interpreter: of a single process, and of the ranks that it would start."""
    marker = tmp_path / "marker"
    for name in ("yaml.py", "hydra.py", "hydra_plugins/evil.py", "omegaconf/__init__.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"import os\nos.mknod({str(marker)!r})\n")
    for command in (["-m", "trainer", "--cfg", "job", "task=cnn"], ["-m", "trainer.rank", "join", "task=none"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert not marker.exists(), done.stderr
        assert ("optimizer:" in done.stdout) if "--cfg" in command else done.returncode == 2, done.stderr


def test_limits_of_yaml() -> None:
    assert find_excess("a: [1, 2]\nb: &x {c: 1}\nd: [*x, *x]\n") is None
    assert find_excess("- " * 60 + "x") is not None
    assert "itself" in str(find_excess("a: &a [*a]\n"))
    assert find_excess("[" + "x, " * 99_000 + "]") is None
    assert find_excess("[" + "x, " * 101_000 + "]") is not None


def test_an_image_of_the_largest_size_is_read_and_a_larger_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 64)
    for size, usable in (((8, 8), True), ((8, 9), False)):
        buffer = io.BytesIO()
        Image.new("L", size).save(buffer, format="PNG")
        if usable:
            assert decode.open_image({"bytes": buffer.getvalue()}).size == size
        else:
            with pytest.raises(decode.Unusable, match="8x9 pixels"):
                decode.open_image({"bytes": buffer.getvalue()})


def test_a_snapshot_of_the_hub_may_link_to_its_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    blobs, snapshot = tmp_path / "datasets--x" / "blobs", tmp_path / "datasets--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("text,label\na,0\n")
    (snapshot / "train.csv").symlink_to("../../blobs/1")
    assert len(sources.load_splits(sources.Source(None, None, str(snapshot)))["train"]) == 1
    (snapshot / "test.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(UserError, match="outside of the set"):
        sources.load_splits(sources.Source(None, None, str(snapshot)))

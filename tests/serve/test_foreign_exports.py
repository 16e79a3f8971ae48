"""Runs and exports of somebody else that are served: nothing in them executes, nothing outside of them is read.

Each case changes one thing in a copy of an innocent run and gives the words of `serve`. Checksums in the manifest are
made to fit, as one who plants something would.
"""

import io
import json
import pickle
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exports import rewrite_manifest
from foreign import PRIVATE, Payload

from trainer.cli import main
from trainer.run.files import MANIFEST_FILE

pytestmark = pytest.mark.timeout(1200)


@dataclass
class Foreign:
    """A run with exports. outside: a folder that is not part of it. marker: what executed code would create."""

    run: Path
    outside: Path
    marker: Path

    def export(self, name: str) -> Path:
        """The folder of one format."""
        return self.run / "export" / name

    def serve(self, name: str) -> list[str]:
        """Let the manifest fit the files. Returns: the words that serve this format."""
        rewrite_manifest(self.export(name))
        return [f"run={self.run}", f"format={name}"]

    def payload(self) -> Payload:
        """What creates the marker when it is unpickled."""
        return Payload(str(self.marker))

    def module(self, folder: Path, name: str) -> None:
        """A module that creates the marker when it is imported."""
        folder.mkdir(exist_ok=True, parents=True)
        (folder / f"{name}.py").write_text(f"import os\nos.mknod({str(self.marker)!r})\nclass Evil: pass\n")


@pytest.fixture(scope="module")
def exported(text_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = shutil.copytree(text_export.parents[1], tmp_path_factory.mktemp("foreign") / "run")
    assert main(["export", f"run={run}", "format=safetensors,torch_export"]) == 0
    return run


@pytest.fixture
def foreign(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Foreign:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text(PRIVATE)
    return Foreign(shutil.copytree(exported, tmp_path / "run"), outside, tmp_path / "marker")


def change_json(file: Path, change: Callable[[Any], None]) -> None:
    """Rewrite a file of JSON."""
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


# --- pickles


def weights_are_a_pickle(foreign: Foreign) -> list[str]:
    torch.save(foreign.payload(), foreign.export("safetensors") / "model.safetensors")
    return foreign.serve("safetensors")


def program_holds_a_pickle(foreign: Foreign) -> list[str]:
    file = foreign.export("torch_export") / "model.pt2"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (sample,) = (name for name in members if name.endswith("sample_inputs/model.pt"))
    members[sample] = pickle.dumps(foreign.payload())
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return foreign.serve("torch_export")


def graph_is_a_pickle(foreign: Foreign) -> list[str]:
    (foreign.export("onnx") / "model.onnx").write_bytes(pickle.dumps(foreign.payload()))
    return foreign.serve("onnx")


def probes_are_a_pickle(foreign: Foreign) -> list[str]:
    file = foreign.export("onnx") / "probes.npy"
    np.save(file, np.array([foreign.payload()], dtype=object), allow_pickle=True)
    return foreign.serve("onnx")


def record_is_a_pickle(foreign: Foreign) -> list[str]:
    (foreign.run / "run.json").write_bytes(pickle.dumps(foreign.payload()))
    return foreign.serve("onnx")


# --- names of code


def processing_names_code(foreign: Foreign) -> list[str]:
    foreign.module(foreign.marker.parent, "evil")
    file = foreign.export("onnx") / "processing.json"
    change_json(file, lambda value: value["inputs"].update(_target_="evil.Evil"))
    return foreign.serve("onnx")


def configuration_names_code(foreign: Foreign) -> list[str]:
    foreign.module(foreign.marker.parent, "evil")
    config = foreign.export("safetensors") / "config.yaml"
    config.write_text(config.read_text().replace("model:\n", "model:\n  _target_: evil.Evil\n  vocab_size: 100\n", 1))
    return foreign.serve("safetensors")


def configuration_has_yaml_tags(foreign: Foreign) -> list[str]:
    with (foreign.export("safetensors") / "config.yaml").open("a") as file:
        file.write(f"evil: !!python/object/apply:os.mknod [{foreign.marker}]\n")
    return foreign.serve("safetensors")


def configuration_names_a_plugin(foreign: Foreign) -> list[str]:
    foreign.module(foreign.export("safetensors") / "evil", "config")
    config = foreign.export("safetensors") / "config.yaml"
    text = config.read_text().replace("plugins: []", f"plugins: [{foreign.export('safetensors')}/evil]")
    config.write_text(text.replace("name: bert\n", "name: evil\n"))
    return foreign.serve("safetensors")


def export_is_machine_code(foreign: Foreign) -> list[str]:
    foreign.export("onnx").rename(foreign.export("aot_inductor"))
    change_json(foreign.export("aot_inductor") / MANIFEST_FILE, lambda value: value.update(format="aot_inductor"))
    (foreign.export("aot_inductor") / "model.pt2").write_bytes(pickle.dumps(foreign.payload()))
    return foreign.serve("aot_inductor")


# --- remote code of transformers


def network_is_remote_code(foreign: Foreign) -> list[str]:
    folder = foreign.export("safetensors")
    foreign.module(folder, "evil")
    names = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "evil.Evil")
    change_json(folder / "inputs.json", lambda value: value["network"].update(auto_map=names, model_type="evil"))
    return foreign.serve("safetensors")


def tokenizer_is_remote_code(foreign: Foreign) -> list[str]:
    folder = foreign.export("safetensors") / "tokenizer"
    foreign.module(folder, "evil")
    names = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    change_json(
        folder / "tokenizer_config.json", lambda value: value.update(auto_map=names, tokenizer_class="EvilTokenizer")
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    return foreign.serve("safetensors")


# --- files elsewhere


def external(tensor: Any, location: str) -> None:
    """Let the values of a tensor be in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def weights_are_elsewhere(foreign: Foreign) -> list[str]:
    file = foreign.export("onnx") / "model.onnx"
    model = onnx.load(str(file))
    external(model.graph.initializer[0], "../../../outside/victim")
    file.write_bytes(model.SerializeToString())
    return foreign.serve("onnx")


def sparse_weights_are_elsewhere(foreign: Foreign) -> list[str]:
    file = foreign.export("onnx") / "model.onnx"
    model = onnx.load(str(file))
    values = onnx.helper.make_tensor("planted", onnx.TensorProto.FLOAT, [4], [0.0] * 4)
    indices = onnx.helper.make_tensor("planted_indices", onnx.TensorProto.INT64, [4], range(4))
    external(values, str(foreign.outside / "victim"))
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [8]))
    file.write_bytes(model.SerializeToString())
    return foreign.serve("onnx")


def tokenizer_is_elsewhere(foreign: Foreign) -> list[str]:
    file = foreign.export("onnx") / "processing.json"
    change_json(file, lambda value: value["inputs"].update(tokenizer="../../../outside/victim"))
    return foreign.serve("onnx")


def manifest_is_elsewhere(foreign: Foreign) -> list[str]:
    words = foreign.serve("onnx")
    (foreign.export("onnx") / MANIFEST_FILE).unlink()
    (foreign.export("onnx") / MANIFEST_FILE).symlink_to(foreign.outside / "victim")
    return words


def graph_is_elsewhere(foreign: Foreign) -> list[str]:
    (foreign.export("onnx") / "model.onnx").rename(foreign.outside / "model.onnx")
    (foreign.export("onnx") / "model.onnx").symlink_to(foreign.outside / "model.onnx")
    return [f"export={foreign.export('onnx')}"]


# --- files that are no files of an export


def probes_are_nested(foreign: Foreign) -> list[str]:
    (foreign.export("onnx") / "probes.json").write_text("[" * 100_000 + "]" * 100_000)
    return foreign.serve("onnx")


def probes_are_none(foreign: Foreign) -> list[str]:
    (foreign.export("onnx") / "probes.json").write_text("[]")
    np.save(foreign.export("onnx") / "probes.npy", np.zeros((0, 2), np.float32))
    return foreign.serve("onnx")


def outputs_of_probes_are_text(foreign: Foreign) -> list[str]:
    file = foreign.export("onnx") / "probes.npy"
    np.save(file, np.full(np.load(file).shape, "evil"))
    return foreign.serve("onnx")


def outputs_of_probes_are_huge(foreign: Foreign) -> list[str]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**44, 2)})
    (foreign.export("onnx") / "probes.npy").write_bytes(header.getvalue())
    return foreign.serve("onnx")


def manifest_has_terminal_escapes(foreign: Foreign) -> list[str]:
    escapes = "\x1b]0;title\x07\x1b[2J"
    change_json(foreign.export("onnx") / MANIFEST_FILE, lambda value: value.update(format=escapes))
    return [f"export={foreign.export('onnx')}"]


def manifest_names_no_run(foreign: Foreign) -> list[str]:
    change_json(foreign.export("onnx") / MANIFEST_FILE, lambda value: value.update(run={}))
    return [f"export={foreign.export('onnx')}"]


def labels_do_not_fit(foreign: Foreign) -> list[str]:
    file = foreign.export("onnx") / "processing.json"
    change_json(file, lambda value: value["outputs"].update(names=["good"]))
    return foreign.serve("onnx")


CASES: dict[Callable[[Foreign], list[str]], str] = {
    weights_are_a_pickle: "model.safetensors",
    program_holds_a_pickle: "is a pickle",
    graph_is_a_pickle: "model.onnx: cannot be read",
    probes_are_a_pickle: "probes.npy is damaged",
    record_is_a_pickle: "run.json",
    processing_names_code: "_target_",
    configuration_names_code: "names code",
    configuration_has_yaml_tags: "config.yaml",
    configuration_names_a_plugin: "imports no code by itself",
    export_is_machine_code: "is machine code",
    network_is_remote_code: "unknown architecture",
    tokenizer_is_remote_code: "tokenizer cannot be read",
    weights_are_elsewhere: "outside of the export's folder",
    sparse_weights_are_elsewhere: "outside of the export's folder",
    tokenizer_is_elsewhere: "outside of the export's folder",
    manifest_is_elsewhere: "symbolic link",
    graph_is_elsewhere: "outside of the export's folder",
    probes_are_nested: "is damaged",
    probes_are_none: "has no probes",
    outputs_of_probes_are_text: "is damaged",
    outputs_of_probes_are_huge: "is damaged",
    manifest_has_terminal_escapes: "is not known to this version",
    manifest_names_no_run: "run.directory is missing",
    labels_do_not_fit: "fails on its probes",
}


@pytest.mark.parametrize("plant", CASES, ids=lambda plant: plant.__name__)
def test_a_foreign_export_is_not_served(
    plant: Callable[[Foreign], list[str]],
    foreign: Foreign,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = plant(foreign)
    capsys.readouterr()
    # A server that starts in spite of it ends at once.
    monkeypatch.setattr("trainer.serve.reload.signature", lambda folder: signal.raise_signal(signal.SIGTERM))
    code = main(["serve", "port=0", "drain_s=0", "reload_every_s=0.01", *words])
    printed = "".join(capsys.readouterr())
    assert not foreign.marker.exists(), "code was executed"
    assert code == 2, printed
    assert CASES[plant] in printed, printed
    assert len(printed.strip().split("\n")) <= 3, printed
    assert "\x1b" not in printed and PRIVATE not in printed and "Traceback" not in printed
    assert (foreign.outside / "victim").read_text() == PRIVATE


def test_what_is_planted_would_execute(foreign: Foreign) -> None:
    """The control: the marker is made by the payload and by the module."""
    pickle.loads(pickle.dumps(foreign.payload()))
    assert foreign.marker.exists()
    foreign.marker.unlink()
    foreign.module(foreign.marker.parent, "evil_control")
    __import__("evil_control")
    assert foreign.marker.exists()

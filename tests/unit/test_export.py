"""Exports of a classifier: proved, loaded without the training half, and faults and code planted in them."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from dcgan_runs import FAST
from exports import changed_processing, fixed_batch, opened, rewrite_manifest, swapped_weights
from onnx.numpy_helper import to_array

import trainer
from trainer.cli import main
from trainer.errors import UserError
from trainer.export import load
from trainer.export.gate import Gate, NotEqual, _batches
from trainer.export.source import Source
from trainer.export.write import export_format
from trainer.run.files import MANIFEST_FILE

FORMATS = ["safetensors", "torch_export", "onnx"]
Opened = tuple[Source, Gate]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with an export in each format that is compared exactly."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["task=cnn", *FAST, "trainer.limit_train_batches=12", "run.name=lenet"]) == 0
    place = folder / "outputs" / "cnn" / "lenet"
    assert main(["export", f"run={place}", f"format={','.join(FORMATS)}"]) == 0
    return place


@pytest.fixture(scope="module")
def source_and_gate(run: Path) -> Opened:
    return opened(run)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The exports, to be changed."""
    shutil.copytree(run / "export", tmp_path / "export")
    return tmp_path / "export"


def images(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(3).integers(0, 256, (count, 32, 32), dtype=np.uint8))


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_gives_what_the_run_gives(run: Path, name: str) -> None:
    reference, exported = trainer.load(run, device="cpu"), load(run / "export" / name)
    inputs = images(11)
    for size in (1, 3, 32):
        np.testing.assert_allclose(exported.outputs(inputs, size), reference.outputs(inputs).numpy(), atol=1e-5)
    for found, expected in zip(exported(inputs), reference(inputs), strict=True):
        assert found["label"] == expected["label"]
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    assert exported(inputs[0])[0]["label"] == exported(inputs)[0]["label"]
    assert exported([]) == []


@pytest.mark.parametrize("name", FORMATS)
def test_the_manifest_says_how_it_was_proved(run: Path, name: str) -> None:
    manifest = load(run / "export" / name).manifest
    parity = manifest.parity
    assert (parity.measured_on, parity.metric) == ("val", "accuracy")
    assert parity.of_run is not None and parity.of_export == pytest.approx(parity.of_run, abs=0.001)
    assert trainer.evaluate(run)["val/accuracy"] == pytest.approx(parity.of_run)
    assert {shape[0] for shape in parity.shapes} >= {1, 2, 7}
    assert manifest.arguments["images"]["shape"][0] == "batch"
    assert manifest.run["hash"] and manifest.git and manifest.versions["torch"]
    assert set(manifest.files) == {
        path.relative_to(run / "export" / name).as_posix()
        for path in (run / "export" / name).rglob("*")
        if path.is_file() and path.name != MANIFEST_FILE
    }


@pytest.mark.slow
def test_sums_of_products_of_8_bits_fit_in_16(run: Path, source_and_gate: Opened) -> None:
    """x86 without VNNI adds two at a time: 2 * 255 * 64 < 2^15."""
    export_format(*source_and_gate, "onnx_int8")
    graph = onnx.load(run / "export" / "onnx_int8" / "model.onnx").graph
    weights = [to_array(each) for each in graph.initializer if each.data_type == onnx.TensorProto.INT8 and each.dims]
    assert sum(each.size for each in weights) > 40_000
    assert max(np.abs(each.astype(int)).max() for each in weights) == 64


def test_onnx_is_loaded_without_torch(run: Path) -> None:
    code = """
import sys
import numpy as np
from trainer.export import load
place, barred = sys.argv[1], sys.argv[2].split(",")
assert len(load(place)(np.zeros((5, 32, 32), np.uint8))) == 5
print([name for name in sys.modules if name.partition(".")[0] in barred])
"""
    words = [sys.executable, "-c", code, str(run / "export" / "onnx"), "torch,pytorch_lightning,tasks"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "[]\n"


def wrong_std(inputs: dict[str, Any], outputs: dict[str, Any], files: dict[str, str]) -> None:
    inputs["std"] = [value * 1.1 for value in inputs["std"]]


def wrong_labels(inputs: dict[str, Any], outputs: dict[str, Any], files: dict[str, str]) -> None:
    outputs["names"] = outputs["names"][::-1]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "aot_inductor", "onnx_fp16", "onnx_int8")]
# Compiled code does not check shapes, so its outputs have the wrong one; calibration of eight bits fails by itself.
FIXED = r"fails at images \(1, 1, 32, 32\)|outputs have the shape \(2, |cannot be written"


@pytest.mark.parametrize("name", ["safetensors", "torch_export", *SLOW])
def test_planted_faults_are_caught_and_the_earlier_export_is_kept(
    run: Path, source_and_gate: Opened, name: str
) -> None:
    source, gate = source_and_gate
    if name not in FORMATS:
        export_format(source, gate, name)
    before = (run / "export" / name / MANIFEST_FILE).read_bytes()
    with pytest.raises(NotEqual, match=r"outputs differ by \d\S* (at images \(1, 1, 32, 32\)|on average); allowed: 0"):
        export_format(swapped_weights(source), gate, name)
    with changed_processing(wrong_std)(source.model), pytest.raises(NotEqual, match="other values for images"):
        export_format(source, gate, name)
    with changed_processing(wrong_labels)(source.model), pytest.raises(NotEqual, match="other results"):
        export_format(source, gate, name)
    if name != "safetensors":
        with fixed_batch(source.model), pytest.raises(NotEqual, match=FIXED):
            export_format(source, gate, name)
    assert (run / "export" / name / MANIFEST_FILE).read_bytes() == before
    assert load(run / "export" / name, allow_native_code=name == "aot_inductor")(images(1))
    assert [path.name for path in (run / "export").glob(".*") if path.is_dir()] == []
    if name not in FORMATS:
        shutil.rmtree(run / "export" / name)


def test_the_verb_ends_with_1_where_an_export_is_not_equal(
    run: Path, source_and_gate: Opened, capsys: pytest.CaptureFixture[str]
) -> None:
    with changed_processing(wrong_labels)(source_and_gate[0].model):
        assert main(["export", f"run={run}", "format=safetensors"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("safetensors: not exported: ") and error.endswith("; the earlier export is kept\n")


def test_batches_are_small_at_both_ends_and_leave_nothing_out() -> None:
    for count in (0, 1, 3, 9, 10, 11, 19, 20, 21, 100):
        batches = [list(batch) for batch in _batches(range(count), 32)]
        assert [value for batch in batches for value in batch] == list(range(count))
        assert all(0 < len(batch) <= 32 for batch in batches)
    assert [len(batch) for batch in _batches(range(100), 32)] == [1, 2, 7, 32, 32, 16, 7, 2, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=onnx"], "needs run=DIR"),
        (["run=RUN"], "needs format=NAME"),
        (["run=RUN", "format=onxx"], "did you mean onnx?"),
        (["run=RUN", "format=onnx", "formt=onnx"], "no such argument"),
        (["run=RUN", "format=onnx", "optimizer.lr=1"], "export would ignore it"),
        (["run=nowhere", "format=onnx"], "not a run directory"),
        (["run=RUN", "format=tensorrt"], "needs an NVIDIA GPU"),
        (["run=RUN", "format=onnx", "data.image_size=9"], "the run was trained with"),
    ],
)
def test_mistakes_are_user_errors(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *(word.replace("RUN", str(run)) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) <= 3


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(folder)


def test_a_changed_missing_or_added_file_is_refused(copied: Path) -> None:
    (copied / "onnx" / "processing.json").write_text("{}")
    refused(copied / "onnx", "another checksum")
    (copied / "safetensors" / "inputs.json").unlink()
    refused(copied / "safetensors", r"inputs\.json is missing")
    (copied / "torch_export" / "more.bin").write_bytes(b"")
    refused(copied / "torch_export", r"more\.bin is not in manifest\.json")
    refused(copied, "no export")


def test_a_file_outside_of_the_folder_is_refused(copied: Path) -> None:
    folder = copied / "onnx"
    shutil.move(folder / "model.onnx", copied / "model.onnx")
    (folder / "model.onnx").symlink_to(copied / "model.onnx")
    refused(folder, r"model\.onnx is outside")
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"]["../model.onnx"] = manifest["files"].pop("model.onnx")
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    refused(folder, r"\.\./model\.onnx is outside")


@pytest.mark.parametrize("inside_a_node", [False, True])
@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname"])
def test_onnx_weights_outside_of_the_folder_are_refused(copied: Path, location: str, inside_a_node: bool) -> None:
    folder = copied / "onnx"
    model = onnx.load(str(folder / "model.onnx"))
    tensor = model.graph.initializer[0]
    if inside_a_node:
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["planted"], value=tensor))
        tensor = model.graph.node[-1].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    rewrite_manifest(folder)
    refused(folder, "its weights are at")


def test_targets_are_refused(copied: Path) -> None:
    file = copied / "onnx" / "processing.json"
    plain = json.loads(file.read_text())
    plain["inputs"]["_target_"] = "os.system"
    file.write_text(json.dumps(plain))
    rewrite_manifest(copied / "onnx")
    refused(copied / "onnx", "_target_")
    config = copied / "safetensors" / "config.yaml"
    config.write_text(config.read_text().replace("model:\n", "model:\n  _target_: os.getcwd\n", 1))
    rewrite_manifest(copied / "safetensors")
    refused(copied / "safetensors", "os.getcwd|_target_")


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("what", ["sample", "payload", "expression", "guard", "target"])
def test_code_in_a_program_is_refused(copied: Path, tmp_path: Path, what: str) -> None:
    folder, place = copied / "torch_export", tmp_path / "made"
    file = folder / "model.pt2"
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (program,) = (name for name in members if name.endswith("models/model.json"))
    (weights,) = (name for name in members if name.endswith("model_weights_config.json"))
    text = members[program].decode()
    code = f"__import__('os').mkdir('{place}')"
    if what == "sample":
        members[next(name for name in members if name.endswith("sample_inputs/model.pt"))] = pickle.dumps(
            Planted(place)
        )
    elif what == "payload":
        members[weights] = members[weights].replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    elif what == "expression":
        start = text.index('"expr_str": "') + len('"expr_str": "')
        members[program] = (text[:start] + code + text[text.index('"', start) :]).encode()
    elif what == "guard":
        members[program] = text.replace('"guards_code": []', f'"guards_code": ["{code}"]').encode()
    else:
        start = text.index('"target": "torch.ops') + len('"target": "')
        members[program] = (text[:start] + "os.system" + text[text.index('"', start) :]).encode()
    assert what in ("sample", "payload") or members[program] != text.encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    rewrite_manifest(folder)
    refused(folder, r"model\.pt2: ")
    assert not place.exists()


@pytest.mark.slow
def test_inference_is_measured_with_the_metric_beside_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["batch=1,3", "calls=1", "sides=onnx,bf16", f"out={tmp_path}"]
    assert main(["bench", "inference", f"run={run}", *words]) == 0
    printed = capsys.readouterr().out
    assert "batch 3" in printed and "lowest latency: " in printed and "highest throughput: " in printed
    result = json.loads((tmp_path / "result.json").read_text())
    rows = {(row["batch_size"], row["name"]): row for row in result["rows"]}
    accuracy = load(run / "export" / "onnx").manifest.parity.of_run
    assert set(rows) == {(size, name) for size in (1, 3) for name in ("eager", "onnx", "bf16")}
    assert rows[1, "eager"]["speed_up"]["value"] == 1.0
    for row in rows.values():
        assert row["metric"] == pytest.approx(accuracy, abs=0.02)
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["peak_mib"] > row["size_mib"] > 0
        assert row["inputs_per_s"] == pytest.approx(1000 * row["batch_size"] / row["p50_ms"])
    peaks_mib = {name: row["peak_mib"] for (_, name), row in rows.items()}
    assert peaks_mib["onnx"] < peaks_mib["eager"], "which has imported torch"
    assert {path.name for path in tmp_path.iterdir()} >= {"result.md", "result.png", "batch-1", "batch-3"}
    assert main(["bench", "inference", f"run={run}", "sides=onx"]) == 2
    assert "did you mean onnx?" in capsys.readouterr().err
    assert main(["bench", "inference"]) == 2
    assert "needs run=DIR" in capsys.readouterr().err

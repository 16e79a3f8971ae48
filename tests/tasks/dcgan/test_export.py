"""Exports of a generator: every format, with faults planted in each."""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dcgan_runs import run_dir
from exports import changed_processing, fixed_batch, opened, swapped_weights
from PIL import Image

import trainer
from trainer.cli import main
from trainer.export import load
from trainer.export.gate import NotEqual
from trainer.export.write import export_format

pytestmark = pytest.mark.slow

# Compiled code does not check shapes, so its outputs have the wrong one; calibration of eight bits fails by itself.
FIXED = r"fails at \w+ \(1, \d+\)|outputs have the shape \(2, |cannot be written"

FORMATS = ["safetensors", "torch_export", "aot_inductor", "onnx", "onnx_fp16"]


@pytest.fixture(scope="module")
def gan(runs: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)  # the classifier whose features it is scored in is named by a relative path
        assert main(["export", f"run={run_dir(runs)}", f"format={','.join(FORMATS)}"]) == 0
    return run_dir(runs)


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_generates_the_images_of_the_run(gan: Path, name: str) -> None:
    exported = load(gan / "export" / name, allow_native_code=name == "aot_inductor")
    expected = trainer.load(gan, device="cpu")(9)
    for size in (1, 4, 32):
        for result, image in zip(exported(9, size), expected, strict=True):
            found = Image.open(io.BytesIO(base64.b64decode(result["png_base64"])))
            difference = np.abs(np.asarray(found).astype(int) - np.asarray(image))
            assert difference.max() <= (3 if name == "onnx_fp16" else 1)
    point = np.ones(16, np.float32)
    assert exported(point) == exported([point])
    parity = exported.manifest.parity
    assert (parity.measured_on, parity.metric) == ("val", "frechet_distance")
    assert parity.of_run is not None and math.isfinite(parity.of_run)


def test_eight_bits_are_exact_enough_or_refused(gan: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    code = main(["export", f"run={gan}", "format=onnx_int8"])
    assert code == (0 if (gan / "export" / "onnx_int8" / "manifest.json").exists() else 1)
    if code == 0:
        parity = load(gan / "export" / "onnx_int8").manifest.parity
        assert parity.of_run and parity.of_export
        assert abs(parity.of_export - parity.of_run) <= 0.005 * parity.of_run


def other_noise(inputs: dict[str, Any], outputs: dict[str, Any], files: dict[str, str]) -> None:
    inputs["stream"] += 1


@pytest.mark.parametrize("name", [*FORMATS, "onnx_int8"])
def test_planted_faults_are_caught(gan: Path, runs: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    source, gate = opened(gan)
    with pytest.raises(NotEqual, match="outputs differ"):
        export_format(swapped_weights(source), gate, name)
    with changed_processing(other_noise)(source.model), pytest.raises(NotEqual, match="other values for noise"):
        export_format(source, gate, name)
    if name != "safetensors":
        with fixed_batch(source.model), pytest.raises(NotEqual, match=FIXED):
            export_format(source, gate, name)

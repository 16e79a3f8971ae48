"""Which device each worker of a server computes on."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.cli import main
from trainer.errors import UserError
from trainer.export import load
from trainer.export.devices import CPU_PROVIDER, CUDA_PROVIDER, assigned_gpus, count_gpus, providers_for
from trainer.export.onnx_file import open_session
from trainer.serve import model as served
from trainer.serve.batcher import Batcher, Item
from trainer.serve.config import ServeConfig
from trainer.serve.metrics import Metrics

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@pytest.mark.parametrize(
    ("workers", "device", "name", "num_gpus", "expected"),
    [
        (2, "auto", "onnx", 2, [0, 1]),
        (2, "cuda", "safetensors", 3, [0, 1]),
        (1, "auto", "tensorrt", 1, [0]),
        (3, "auto", "onnx", 0, [None] * 3),
        (3, "cpu", "onnx", 2, [None] * 3),
        (2, "auto", "onnx_int8", 2, [None] * 2),
        (2, "auto", "aot_inductor", 2, [None] * 2),
    ],
)
def test_each_worker_has_a_gpu_of_its_own(
    workers: int, device: str, name: str, num_gpus: int, expected: list[int | None]
) -> None:
    assert assigned_gpus(workers, device, name, num_gpus) == expected


@pytest.mark.parametrize(
    ("workers", "device", "name", "num_gpus", "reason"),
    [
        (3, "auto", "onnx", 2, "workers=3: each needs a GPU of its own, and there are 2"),
        (2, "cuda", "torch_export", 1, "there are 1"),
        (1, "cuda", "onnx", 0, "install onnxruntime-gpu in place of onnxruntime, or choose device=cpu"),
        (1, "cuda", "safetensors", 0, "install torch for CUDA"),
        (1, "cuda", "onnx_int8", 2, "onnx_int8 computes on the CPU; on a GPU compute safetensors"),
        (1, "cpu", "tensorrt", 2, "choose device=cuda"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    workers: int, device: str, name: str, num_gpus: int, reason: str
) -> None:
    with pytest.raises(UserError) as refused:
        assigned_gpus(workers, device, name, num_gpus)
    assert reason in "\n".join(refused.value.lines) and len(refused.value.lines) <= 3


def test_onnxruntime_is_told_the_gpu_and_to_compute_in_float32() -> None:
    assert providers_for(None) == [CPU_PROVIDER]
    assert providers_for(1) == [(CUDA_PROVIDER, {"device_id": 1, "use_tf32": 0}), CPU_PROVIDER]


def test_a_fusion_that_is_slower_on_the_cpu_is_left_out_there(
    image_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disabled: list[list[str]] = []

    class Session:
        def __init__(self, file: str, options: Any, providers: list[Any], disabled_optimizers: list[str]) -> None:
            disabled.append(disabled_optimizers)
            self.providers = [each if isinstance(each, str) else each[0] for each in providers]

        def get_providers(self) -> list[str]:
            return self.providers

        def get_inputs(self) -> list[Any]:
            return []

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    for gpu in (None, 0):
        open_session(image_export, providers_for(gpu))
    assert disabled == [["SkipLayerNormFusion"], []]


def test_each_copy_is_loaded_on_the_gpu_of_its_worker(image_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two GPUs are counted; the copies themselves compute on the CPU here."""
    asked: list[Any] = []

    def load_on_cpu(folder: Path, allow_native_code: bool, gpu: int | None) -> Any:
        asked.append(gpu)
        return load(folder, allow_native_code)

    monkeypatch.setattr(served, "load", load_on_cpu)
    monkeypatch.setattr(served, "count_gpus", lambda name: 2)
    model = served.load_served(image_export, ServeConfig(workers=2))
    assert asked == [0, 1]
    assert model.description()["devices"] == ["cuda:0", "cuda:1"]
    served.load_served(image_export, ServeConfig(workers=2, device="cpu"))
    assert asked == [0, 1, None, None]


@needs_no_gpu
def test_a_server_without_gpus_says_so(image_export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [count_gpus(name) for name in ("safetensors", "onnx", "onnx_int8")] == [0, 0, 0]
    assert main(["serve", f"export={image_export}", "port=0", "device=cuda"]) == 2
    error = capsys.readouterr().err
    assert "device=cuda: onnxruntime finds no GPU here" in error and len(error.strip().split("\n")) <= 3
    assert main(["serve", f"export={image_export}", "port=0", "device=gpu"]) == 2
    assert "device=gpu" in capsys.readouterr().err
    folder = shutil.copytree(image_export, tmp_path / "onnx")
    with pytest.raises(UserError, match="cannot use CUDAExecutionProvider here"):
        load(folder, gpu=0)


def test_two_workers_compute_at_the_same_time() -> None:
    """Each batch ends only when the other one has begun."""
    both, workers = threading.Barrier(2, timeout=60), set[int]()

    class Meeting:
        computes_padding = True

        def compute(self, worker: int, prepared: list[Any]) -> list[dict[str, Any]]:
            both.wait()
            workers.add(worker)
            return [{} for _ in prepared]

    model: Any = Meeting()
    batcher = Batcher(2, max_batch=1, max_wait_s=0, max_queue=10, queue_s=600, metrics=Metrics())
    items = [Item(model, number, 1) for number in range(2)]
    batcher.submit(items)
    assert [item.result.result(60) for item in items] == [{}, {}]
    batcher.close()
    assert workers == {0, 1}

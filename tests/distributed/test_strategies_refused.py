"""Combinations that cannot work are refused before a rank starts, with the reason and what to use instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS

from trainer.cli import main

TWO = [*SPIRALS_WORDS, "trainer.devices=2"]
GAN = ["task=dcgan", "logger=none", "run.report=false", "trainer.accelerator=cpu", "trainer.devices=2"]

# (words, what the message must contain)
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "float16, sharded": (
        [*TWO, "strategy=fsdp2", "trainer.precision=16-mixed"],
        ["trainer.precision=16-mixed", "bf16-mixed"],
    ),
    "float16 under ZeRO": (
        [*TWO, "strategy=deepspeed_stage_1", "trainer.precision=16-mixed"],
        ["trainer.precision=16-mixed", "bf16-mixed", "strategy=ddp"],
    ),
    "Muon, sharded": ([*TWO, "strategy=fsdp2", "optimizer=muon"], ["optimizer=muon", "full matrices", "ddp"]),
    "Muon under ZeRO": ([*TWO, "strategy=deepspeed_stage_2", "optimizer=muon"], ["optimizer=muon", "adamw"]),
    "static graph of several micro-batches": (
        [*TWO, "strategy=ddp", "strategy.static_graph=true", "batch.micro_size=4"],
        ["strategy.static_graph=true", "batch.micro_size"],
    ),
    "bf16 gradients without GPUs": (
        [*TWO, "strategy=ddp", "strategy.gradient_compression=bf16"],
        ["strategy.gradient_compression=bf16", "fp16"],
    ),
    "a GAN, sharded": ([*GAN, "strategy=fsdp2"], ["strategy=fsdp2", "dcgan", "deepspeed_stage_2"]),
    "a GAN under ZeRO 3": ([*GAN, "strategy=deepspeed_stage_3"], ["strategy=deepspeed_stage_3", "deepspeed_stage_1"]),
    "a GAN under ZeRO 3 with offload": (
        [*GAN, "strategy=deepspeed_stage_3_offload"],
        ["strategy=deepspeed_stage_3_offload", "deepspeed_stage_2"],
    ),
    "stage 1 with offload": (
        [*TWO, "strategy=deepspeed_stage_1_offload"],
        ["strategy=deepspeed_stage_1_offload", "did you mean"],
    ),
    "no file": ([*TWO, "strategy=deepspeed"], ["strategy.config=???", "JSON file"]),
    "a missing file": (
        [*TWO, "strategy=deepspeed", "strategy.config=nowhere.json"],
        ["strategy.config=nowhere.json", "No such file"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_reason_and_remedy(name: str, in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = REFUSED[name]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert len(message.strip().split("\n")) <= 3, message
    for part in expected:
        assert part in message, message
    assert not (in_directory / "outputs").exists()


ZERO = {"zero_optimization": {"stage": 2}}
# (content of the file, what the message must contain)
CONTRADICTIONS = {
    "batch": ({"train_batch_size": 64}, ["train_batch_size is 64", "batch.global_size", "32"]),
    "micro-batch": ({"train_micro_batch_size_per_gpu": 2}, ["train_micro_batch_size_per_gpu is 2", "batch.micro_size"]),
    "accumulation": ({"gradient_accumulation_steps": 4}, ["gradient_accumulation_steps is 4", "makes it 2"]),
    "clipping": ({"gradient_clipping": 0.5}, ["gradient_clipping is 0.5", "trainer.gradient_clip_val", "1.0"]),
    "bf16": ({"bf16": {"enabled": True}}, ["bf16.enabled is true", "trainer.precision"]),
    "fp16": ({"fp16": {"enabled": True}}, ["fp16.enabled is true", "trainer.precision"]),
    "optimizer": ({"optimizer": {"type": "Adam"}}, ["optimizer is set by optimizer=..."]),
    "schedule": ({"scheduler": {"type": "WarmupLR"}}, ["scheduler is set by scheduler=..."]),
    "no ZeRO": ({"zero_optimization": {"stage": 0}}, ["zero_optimization.stage", "1, 2 or 3"]),
}


def with_file(directory: Path, content: object) -> list[str]:
    (directory / "ds.json").write_text(json.dumps(content))
    ours = ["batch.micro_size=8", "trainer.gradient_clip_val=1.0"]
    return [*TWO, *ours, "strategy=deepspeed", "strategy.config=ds.json"]


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_file_that_contradicts_the_configuration_is_refused(
    name: str, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, expected = CONTRADICTIONS[name]
    assert main(["plan", *with_file(in_directory, {**ZERO, **content})]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in ["strategy.config=ds.json", *expected]:
        assert part in message, message


def test_a_file_that_agrees_is_accepted(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agreeing = {"train_batch_size": 32, "gradient_accumulation_steps": "auto", "gradient_clipping": 1.0}
    assert main(["plan", *with_file(in_directory, {**ZERO, **agreeing})]) == 0


def test_a_file_that_is_not_json_is_refused(in_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = with_file(in_directory, ZERO)
    (in_directory / "ds.json").write_text("stage: 2")
    assert main(["plan", *words]) == 2
    assert "not JSON" in capsys.readouterr().err

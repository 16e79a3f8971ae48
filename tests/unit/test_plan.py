"""What `plan` says is what the run would be."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import SPIRALS_WORDS, CommandLine
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from trainer.cli import main
from trainer.config.groups import AdamConfig, SGDConfig
from trainer.config.schema import Config, SchedulerConfig
from trainer.config.strategies import FSDP2Config, ZeroConfig
from trainer.estimate.activations import saved_bytes
from trainer.estimate.memory import ModelSizes, estimate
from trainer.launch.discover import planned_world
from trainer.optim.lr_schedule import lr_factor
from trainer.task import TaskSpec
from trainer.verbs.plan import batch_arithmetic
from trainer.verbs.prepare import Options, prepare

MANY = ["trainer.devices=8", "trainer.num_nodes=8", "batch.global_size=1024", "logger=none"]


def prepared(*words: str) -> tuple[Config, TaskSpec]:
    plan = prepare(words, Options(), planned_world)
    return plan.config, plan.task


@pytest.mark.parametrize("task", ["cnn", "dcgan", "bert"])
def test_64_devices_take_less_than_three_seconds_and_no_big_package(task: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom trainer.cli import main\n"
        f"code = main(['plan', 'task={task}', *{MANY!r}])\n"
        "big = {'deepspeed', 'pytorch_lightning', 'transformers', 'datasets', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported {big}' if big else code)\n"
    )
    start = time.monotonic()
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        usage = psutil.Process(process.pid)
        assert process.stdout is not None
        output = process.stdout.read()
        times = usage.cpu_times()
    wall_s, cpu_s = time.monotonic() - start, times.user + times.system
    print(f"{task}: {cpu_s:.2f} s of CPU, {wall_s:.2f} s of wall time")
    assert process.returncode == 0
    assert "64 = 8 node(s) x 8, cuda" in output
    assert "deepspeed_stage_3" in output
    # The time of the process itself: others on this machine must not decide.
    assert cpu_s < 3.0


def test_devices_that_are_not_here_are_no_mistake_but_contradictions_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "task=cnn", "trainer.accelerator=cuda", "trainer.devices=4", "batch.global_size=64"]) == 0
    assert main(["plan", "task=cnn", "trainer.devices=64", "batch.global_size=65", "optimizer.lr=-1"]) == 2
    assert "optimizer.lr=-1" in capsys.readouterr().err
    assert main(["plan", "task=cnn", "trainer.devices=64", "batch.global_size=65"]) == 2
    assert "nearest: 64 or 128" in capsys.readouterr().err


def test_the_plan_of_the_spirals_says_what_it_cannot_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SPIRALS_WORDS]) == 0
    told = capsys.readouterr().out
    assert "known once the data is read" in told
    assert "32 = 1 ranks x 1 micro-steps x 32" in told


@pytest.mark.parametrize("task", ["cnn", "dcgan", "bert"])
def test_parameters_and_steps_are_those_of_the_run(task: str, command_line: CommandLine, tmp_path: Path) -> None:
    words = [f"task={task}", "logger=none", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    config, spec = prepared(*words)
    sizes = spec.model_sizes(config)
    assert sizes is not None
    plan = prepare(words, Options(), planned_world)
    code = (
        "import json, sys, torch\nfrom trainer.verbs.prepare import prepare, Options\n"
        f"plan = prepare({words!r}, Options())\n"
        "data = plan.task.build_data(plan.config)\ndata.load(torch.device('cpu'))\n"
        "module = plan.task.build_module(plan.config, data)\n"
        "counts = {n: sum(p.numel() for p in m.parameters()) for n, m in module.networks().items()}\n"
        "print(json.dumps([counts, data.train_sampler().num_steps]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    counts, num_steps = json.loads(done.stdout.splitlines()[-1])
    assert batch_arithmetic(plan, sizes).steps_per_epoch == num_steps
    if task == "bert":
        # The learnt vocabulary may be smaller than the configured one.
        assert 0 <= sizes.total - counts["model"] <= config.model.vocab_size * config.model.hidden_size  # pyright: ignore
    else:
        assert dict(sizes.parameters) == counts


def test_activations_are_what_the_layers_keep() -> None:
    def build() -> nn.Module:
        block = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 4)]
        return nn.Sequential(*block)

    with torch.device("meta"):
        shadow = build()
    images = torch.zeros(5, 3, 8, 8)
    counted = saved_bytes(shadow, images)
    assert counted == saved_bytes(build(), images)
    # The images (5x3x8x8), the convolution's and the normalisation's results (5x8x6x6, the latter shared by ReLU and
    # the matrix), and mean and deviation of 8 channels, 4 bytes each.
    assert counted >= 4 * (5 * 3 * 64 + 2 * 5 * 8 * 36)


def test_an_encoder_keeps_what_the_formula_says() -> None:
    transformers = pytest.importorskip("transformers")
    config, spec = prepared("task=bert", "logger=none", "trainer.accelerator=cpu", "model.dropout=0.0")
    sizes = spec.model_sizes(config)
    assert sizes is not None and sizes.activation_bytes is not None
    own = transformers.BertConfig(
        vocab_size=4000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512,
        max_position_embeddings=128, num_labels=17, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    own._attn_implementation = "sdpa"
    model = transformers.AutoModelForSequenceClassification.from_config(own).train()
    ids = torch.zeros(2, 64, dtype=torch.int64)
    measured = saved_bytes(model, input_ids=ids, attention_mask=torch.ones_like(ids)) / 2
    assert sizes.total == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.activation_bytes == pytest.approx(measured, rel=0.05)


def test_memory_by_strategy_is_the_papers_arithmetic() -> None:
    """Rajbhandari et al. 2020, section 3.1, with K = 8 bytes of Adam's state for float32 weights, on 8 ranks."""
    sizes = ModelSizes({"model": 1000}, 1000, 100, None)
    adam = AdamConfig(name="adamw", lr=0.1, betas=[0.9, 0.99], eps=1e-8, weight_decay=0.0, fused=False)
    fsdp = FSDP2Config(
        name="fsdp2", reshard_after_forward=True, activation_checkpointing=False, cpu_offload=False
    )  # fmt: skip
    divided = estimate(fsdp, "32-true", adam, sizes, 8, 3)
    assert divided is not None
    assert (divided.weights, divided.gradients, divided.optimizer, divided.activations) == (500, 500, 1000, 300)
    for stage, weights, gradients in ((1, 4000, 4000), (2, 4000, 500), (3, 500, 500)):
        zero = ZeroConfig(name=f"deepspeed_stage_{stage}", overlap_comm=True, bucket_size=10)
        memory = estimate(zero, "32-true", adam, sizes, 8, 3)
        assert memory is not None
        # Beside Adam's two means each rank keeps its part of the weights once more.
        assert (memory.weights, memory.gradients, memory.optimizer) == (weights, gradients, (8 + 4) * 1000 / 8)
    sgd = SGDConfig(name="sgd", lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, fused=False)
    plain = estimate(fsdp, "bf16-true", sgd, sizes, 1, 1)
    assert plain is not None and (plain.weights, plain.optimizer, plain.activations) == (2000, 0, 50)


def test_the_drawn_schedule_is_torchs() -> None:
    config = SchedulerConfig(name="one_cycle", warmup_fraction=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = OneCycleLR(optimizer, 0.5, total_steps=47, pct_start=0.3, cycle_momentum=False)
    for step in range(47):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * lr_factor(config, step, 47), rel=1e-9)
        optimizer.step()
        if step < 46:
            scheduler.step()

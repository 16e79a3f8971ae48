"""What `plan` prints is what the run would be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from warm import run_warm

from trainer.cli import main
from trainer.config.compose import compose_mapping, typed
from trainer.config.groups import AdamConfig, SGDConfig
from trainer.config.schema import Config, SchedulerConfig
from trainer.config.strategies import FSDP2Config, ZeroConfig
from trainer.estimate.activations import saved_bytes
from trainer.estimate.memory import ModelSizes, estimate
from trainer.launch import discover
from trainer.launch.discover import planned_world
from trainer.optim.lr_schedule import lr_factor
from trainer.task import TaskSpec
from trainer.verbs.doctor.configuration import check_configuration, find_world
from trainer.verbs.plan import batch_arithmetic
from trainer.verbs.prepare import Options, prepare

MANY = [
    "trainer.accelerator=cuda",
    "trainer.devices=8",
    "trainer.num_nodes=8",
    "batch.global_size=1024",
    "logger=none",
]
# Each takes seconds to import; torch itself counts the parameters.
HEAVY = (
    "pytorch_lightning",
    "deepspeed",
    "transformers",
    "datasets",
    "wandb",
    "sklearn",
    "matplotlib",
    "torch._dynamo",
)


def prepared(*words: str) -> tuple[Config, TaskSpec]:
    plan = prepare(words, Options(), planned_world)
    return plan.config, plan.task


def test_64_devices_import_no_heavy_package(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom trainer.cli import main\n"
        "for task in ('cnn', 'dcgan', 'bert'):\n"
        f"    assert main(['plan', f'task={{task}}', *{MANY!r}]) == 0\n"
        f"print('imported:', *({set(HEAVY)!r} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1].strip() == "imported:"
    assert output.count("64 = 8 nodes x 8, cuda") == 3
    assert output.count("deepspeed_stage_3") >= 3


def test_missing_devices_are_no_error_but_contradictions_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "task=cnn", "trainer.accelerator=cuda", "trainer.devices=4", "batch.global_size=64"]) == 0
    assert main(["plan", "task=cnn", "trainer.devices=64", "batch.global_size=65", "optimizer.lr=-1"]) == 2
    assert "optimizer.lr=-1" in capsys.readouterr().err
    assert main(["plan", "task=cnn", "trainer.devices=64", "batch.global_size=65"]) == 2
    assert "nearest: 64 or 128" in capsys.readouterr().err


def ranks_by_doctor(*words: str) -> str:
    """The ranks that the doctor reports, whether or not they could start here."""
    config, task = typed(compose_mapping(words))
    world, _ = find_world(config)
    (finding,) = check_configuration(config, task, world)
    return finding.found


@pytest.mark.parametrize(
    ("words", "gpus", "ranks"),
    [
        (["trainer.devices=4"], 0, "4 = 1 node x 4, cpu, ddp"),
        (["trainer.devices=4", "trainer.accelerator=cuda"], 0, "4 = 1 node x 4, cuda, ddp"),
        (["trainer.devices=4"], 4, "4 = 1 node x 4, cuda, ddp"),
        (["trainer.devices=4", "trainer.accelerator=cpu"], 4, "4 = 1 node x 4, cpu, ddp"),
        (["trainer.devices=8"], 4, "8 = 1 node x 8, cuda, ddp"),
        ([], 2, "2 = 1 node x 2, cuda, ddp"),
        ([], 0, "1 = 1 node x 1, cpu, ddp"),
    ],
)
def test_plan_and_doctor_print_the_same_ranks(
    words: list[str], gpus: int, ranks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(discover, "num_visible_gpus", lambda environment=None: gpus)
    monkeypatch.setenv("COLUMNS", "150")
    line = ["task=cnn", "strategy=ddp", "logger=none", "batch.global_size=64", *words]
    assert main(["plan", *line]) == 0
    planned = capsys.readouterr().out
    assert ranks in planned
    assert ranks_by_doctor(*line).startswith(ranks)
    on_cpu = "cpu" in ranks
    ddp = next(row for row in planned.split("what can be combined")[1].split("\n") if "ddp *" in row)
    assert (", 16-mixed" in ddp) == (not on_cpu)
    surprising = on_cpu and words == ["trainer.devices=4"]
    assert ("trainer.accelerator=cuda plans for GPUs elsewhere" in planned) == surprising


# Builds a run's data and networks without starting it.
BUILD = """
import json, sys, torch
from trainer.verbs.prepare import Options, prepare
found = {}
for task, words in json.loads(sys.argv[1]).items():
    plan = prepare(words, Options())
    data = plan.task.build_data(plan.config)
    data.load(torch.device("cpu"))
    module = plan.task.build_module(plan.config, data)
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in module.networks().items()}
    found[task] = counts, data.train_sampler().num_steps
print(json.dumps(found))
"""


def test_parameters_and_steps_are_those_of_the_run(tmp_path: Path) -> None:
    common = ["logger=none", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    lines = {task: [f"task={task}", *common] for task in ("cnn", "dcgan", "bert")}
    (tmp_path / "build.py").write_text(BUILD)
    done = run_warm(["build.py", json.dumps(lines)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout.splitlines()[-1])
    for task, words in lines.items():
        plan = prepare(words, Options(), planned_world)
        sizes = plan.task.model_sizes(plan.config)
        assert sizes is not None
        counts, num_steps = built[task]
        assert batch_arithmetic(plan, sizes).steps_per_epoch == num_steps
        if task == "bert":
            # The learned vocabulary may be smaller than the configured one.
            vocabulary = plan.config.model.vocab_size * plan.config.model.hidden_size  # pyright: ignore
            assert 0 <= sizes.total - counts["model"] <= vocabulary
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
    sharded = estimate(fsdp, "32-true", adam, sizes, 8, 3)
    assert sharded is not None
    assert (sharded.weights, sharded.gradients, sharded.optimizer, sharded.activations) == (500, 500, 1000, 300)
    for stage, weights, gradients in ((1, 4000, 4000), (2, 4000, 500), (3, 500, 500)):
        zero = ZeroConfig(name=f"deepspeed_stage_{stage}", overlap_comm=True, bucket_size=10)
        memory = estimate(zero, "32-true", adam, sizes, 8, 3)
        assert memory is not None
        # Beside Adam's two means each rank keeps a float32 copy of its shard of the weights.
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

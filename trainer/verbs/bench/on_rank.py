"""The work of one rank in a sample of `bench scaling data`, `inference`, or of the link between ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.clock import StepClock
from trainer.collectives import all_gather_json, all_reduce_sum
from trainer.data.loaders import StepLoader
from trainer.data.samplers import Share
from trainer.engine.build import rank_device
from trainer.errors import UserError
from trainer.run.record import Record
from trainer.verbs.prepare import PreparedRun
from trainer.verbs.stored_run import refuse_unknown

# A sample takes at least this long on one device, so that the start of a pass does not count.
SAMPLE_S = 1.0
INFERENCE_BATCHES = 16

# What a pass computes on this rank, as numbers to be added over ranks; its argument is the number of the pass.
Work = Callable[[int], Mapping[str, float]]


def bench_on_rank(prepared: PreparedRun, run_dir: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Measure one sample, with the sums over ranks of what it computed. passes=0 measures how many fill SAMPLE_S."""
    own = refuse_unknown("bench", arguments, ["kind", "passes"])
    work = WORK[own["kind"]](prepared, run_dir)
    work(0)
    passes = int(own["passes"])
    if passes == 0:
        once = max(all_gather_json(_timed(work, 1)[0]))
        passes = max(1, round(SAMPLE_S / once))
    time_s, computed = _timed(work, passes)
    ranks = all_gather_json({"time_s": time_s, "computed": computed})
    total = {key: sum(rank["computed"][key] for rank in ranks) for key in computed}
    slowest_s = max(rank["time_s"] for rank in ranks)
    return {"time_s": slowest_s / passes, "passes": passes, "computed": total}


def _timed(work: Work, passes: int) -> tuple[float, Mapping[str, float]]:
    """Seconds of some passes that all ranks begin together, and what the last one computed."""
    all_gather_json(None)
    start = time.perf_counter()
    computed: Mapping[str, float] = {}
    for number in range(passes):
        computed = work(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, computed


def _loading(prepared: PreparedRun, run_dir: Path) -> Work:
    """An epoch of training batches, each on the device; the sums show that every sample was loaded once."""
    config, world = prepared.config, prepared.world
    data, device = prepared.task.build_data(config), rank_device(world)
    data.read_input_spec(run_dir)
    data.load(device)
    sampler, share = data.train_sampler(), Share(world.rank, world.world_size)
    micro = config.batch.fixed_micro_size or config.batch.global_size
    ahead = config.performance.prefetch_batches

    def load(number: int) -> Mapping[str, float]:
        loader = StepLoader(data.sets["train"], sampler, share, micro, device, ahead, lambda: (0, 0), StepClock())
        samples, content = 0, torch.zeros((), dtype=torch.float64, device=device)
        for step in loader:
            for batch in step.micro_batches:
                samples += batch.num_valid
                content += sum(_sum(getattr(batch, f.name), batch.num_valid) for f in fields(batch))
        return {"samples": samples, "content": float(content)}

    return load


def _sum(value: Any, rows: int) -> Tensor | float:
    return value[:rows].double().sum() if isinstance(value, Tensor) else 0.0


def _inference(prepared: PreparedRun, run_dir: Path) -> Work:
    """INFERENCE_BATCHES forward passes of batch.eval_size examples, shared out to the ranks."""
    config, world = prepared.config, prepared.world
    inference = prepared.task.load_inference(config, run_dir, rank_device(world))
    rows = config.batch.eval_size
    if INFERENCE_BATCHES % world.world_size:
        raise UserError(
            f"trainer.devices={world.world_size}: bench scaling inference shares out {INFERENCE_BATCHES} batches"
        )
    own = INFERENCE_BATCHES // world.world_size
    examples = {
        name: tensor.repeat(-(-rows // len(tensor)), *[1] * (tensor.dim() - 1))[:rows]
        for name, tensor in inference.example_inputs().tensors.items()
    }

    @torch.inference_mode()
    def infer(number: int) -> Mapping[str, float]:
        outputs = [inference.network(**examples).double().mean() for _ in range(own)]
        # The mean over ranks is added up from them.
        return {"samples": own * rows, "mean output": float(outputs[-1]) / world.world_size}

    return infer


def _link(prepared: PreparedRun, run_dir: Path) -> Work:
    """An all-reduce of as many bytes as the gradients have."""
    parameters = sum(Record(run_dir).read()["model"]["num_parameters"].values())
    gradients = torch.zeros(parameters, device=rank_device(prepared.world))

    def reduce(number: int) -> Mapping[str, float]:
        all_reduce_sum(gradients)
        return {}

    return reduce


WORK: Mapping[str, Callable[[PreparedRun, Path], Work]] = {
    "data": _loading,
    "inference": _inference,
    "link": _link,
}

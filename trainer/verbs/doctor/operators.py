"""Compilers: for torch.compile, and for DeepSpeed's own operators."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.deepspeed import engine_config
from trainer.config.schema import Config
from trainer.config.strategies import DeepSpeedFileConfig, ZeroConfig
from trainer.errors import EXIT_DONE, UserError
from trainer.verbs.doctor.child import run_child
from trainer.verbs.doctor.report import Finding, from_error
from trainer.world import World

INSTALL_COMPILER = "apt-get install g++, or CXX=COMPILER, or `module load gcc` on a cluster"
QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")


def check_compiler(config: Config, world: World) -> Iterator[Finding]:
    """torch.compile finds a C++ compiler."""
    if not config.performance.compile:
        yield Finding("compiler", "skipped", "performance.compile=false")
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        remedy = f"{INSTALL_COMPILER}, or performance.compile=false"
        yield Finding("compiler", "failure", f"torch.compile needs a C++ compiler, and there is no {compiler}", remedy)
    else:
        yield Finding("compiler", "ok", f"{shutil.which(compiler)}")


def check_deepspeed(config: Config, world: World) -> Iterator[Finding]:
    """DeepSpeed can be imported as in a run, and the operators that this configuration needs can be built."""
    if not isinstance(config.strategy, ZeroConfig | DeepSpeedFileConfig):
        yield Finding("DeepSpeed", "skipped", f"strategy={config.strategy.name}")
        return
    try:
        builders = needed_builders(engine_config(config, world.world_size), os.environ)
    except UserError as error:
        yield from_error("DeepSpeed", error)
        return
    command = [sys.executable, "-m", "trainer.verbs.doctor.deepspeed_probe", world.accelerator, *builders]
    child = run_child(command)
    if child.code != EXIT_DONE:
        remedy = "python -m pip install --upgrade deepspeed, or strategy=fsdp2"
        yield Finding("DeepSpeed", "failure", f"cannot be imported: {child.error_line}", remedy)
        return
    yield from _findings(json.loads(child.output.strip().splitlines()[-1]))


def needed_builders(engine: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
    """DeepSpeed's builders of the operators that an engine loads. The optimizers are torch's, so most need none."""
    zero = engine.get("zero_optimization", {})
    offloads = [zero.get(key) or {} for key in ("offload_optimizer", "offload_param")]
    builders = []
    if any(offload.get("device") == "nvme" for offload in offloads):
        builders.append("AsyncIOBuilder")
    if any(zero.get(key) for key in QUANTIZED):
        builders.append("QuantizerBuilder")
    native = environment.get("DS_PIN_MEMORY_BACKEND", "").strip().lower() == "native"
    if native and any(offload.get("pin_memory") for offload in offloads):
        builders.append("PinMemoryBuilder")
    return builders


def _findings(report: Mapping[str, Any]) -> Iterator[Finding]:
    found = f"{report['version']} on {report['accelerator']}"
    operators: Mapping[str, str | None] = report["operators"]
    if not operators:
        yield Finding("DeepSpeed", "ok", f"{found}; no operator has to be built")
        return
    names = ", ".join(operators)
    if not report["compiler"]:
        found += f"; {names} has to be built, and there is no C++ compiler ({report['wanted_compiler']})"
        yield Finding("DeepSpeed", "failure", found, INSTALL_COMPILER)
    elif not report["ninja"]:
        found += f"; {names} has to be built, and there is no ninja"
        yield Finding("DeepSpeed", "failure", found, "python -m pip install ninja")
    elif misfits := {name: why for name, why in operators.items() if why is not None}:
        why = "; ".join(f"{name} cannot be built here: {reason}" for name, reason in misfits.items())
        remedy = "install what it names, or leave its setting out of the DeepSpeed file"
        yield Finding("DeepSpeed", "failure", f"{found}; {why}", remedy)
    else:
        yield Finding("DeepSpeed", "ok", f"{found}; {names} can be built")

"""A container image that serves an export, and its Deployment and Service for Kubernetes."""

from __future__ import annotations

import math
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment

from trainer.deploy.source import Source
from trainer.export.processing import TextInputs

# What serving a graph of ONNX imports, which is neither torch nor Lightning, and what `python -m trainer` looks for.
REQUIREMENTS = (
    "fastapi", "httptools", "hydra-core", "jinja2", "numpy", "onnx", "onnxruntime", "pillow", "prometheus-client",
    "pydantic", "python-multipart", "pyyaml", "rich", "uvicorn", "uvloop",
)  # fmt: skip
TEXT_REQUIREMENTS = ("tokenizers",)
PORT = 8000
USER = 10001  # any that is not root
# Resident memory: interpreter and libraries, and the network several times: as read, as prepared by the runtime, and
# the activations of a batch. Measure your own with `bench inference`, whose column "peak MiB" this stands for.
BASE_MIB, COPIES = 384, 4
REPLICAS = 2


def write_docker(source: Source, environment: Environment, folder: Path) -> None:
    """Write a build context: Dockerfile, pinned requirements, this package, and the export."""
    export = source.graph("docker")
    needed = REQUIREMENTS + (TEXT_REQUIREMENTS if isinstance(export.processing.inputs, TextInputs) else ())
    lines = [f"{name}=={version(name)}" for name in sorted(needed)]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # The package as it exported and proved: an index may have another version, or none.
    package = Path(__file__).parent.parent
    shutil.copytree(package, folder / "package" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(export.folder, folder / "model")
    python = ".".join(platform.python_version_tuple()[:2])
    text = environment.get_template("Dockerfile.j2").render(name=source.name, python=python, port=PORT, user=USER)
    (folder / "Dockerfile").write_text(text, encoding="utf-8")


def write_kubernetes(source: Source, environment: Environment, folder: Path) -> None:
    """Write deployment.yaml: a Deployment of the image of `deploy=docker`, and its Service."""
    export = source.graph("kubernetes")
    text = environment.get_template("kubernetes.yaml.j2").render(
        name=source.name,
        port=PORT,
        user=USER,
        replicas=REPLICAS,
        memory_mib=64 * math.ceil((BASE_MIB + COPIES * export.size_mib) / 64),
    )
    (folder / "deployment.yaml").write_text(text, encoding="utf-8")

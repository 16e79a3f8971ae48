"""Deployments written from exports: the card, Triton's configuration, the container and Kubernetes."""

import ast
import json
import os
import re
import subprocess
import sys
import urllib.request
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from dcgan_runs import FAST
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from huggingface_hub import ModelCard
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement

import trainer
from trainer.cli import main
from trainer.deploy.container import PORT
from trainer.export import load

NAME = "le-net-5"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, exported and deployed in every way."""
    folder = tmp_path_factory.mktemp("deploy")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["task=cnn", *FAST, "trainer.limit_train_batches=12", "run.name=Le_Net.5"]) == 0
    place = folder / "outputs" / "cnn" / "Le_Net.5"
    words = ["format=onnx,safetensors", "deploy=hub,triton,docker,kubernetes"]
    assert main(["export", f"run={place}", *words]) == 0
    return place


def test_the_card_states_what_was_measured(run: Path) -> None:
    card = ModelCard.load(run / "deploy" / "hub" / "README.md")
    assert card.data.pipeline_tag == "image-classification" and card.data.license is None
    (result,) = card.data.eval_results or []
    parity = load(run / "export" / "onnx").manifest.parity
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", parity.of_export, "val")
    assert trainer.evaluate(run)["val/accuracy"] == pytest.approx(result.metric_value, abs=1e-3)
    assert f"| `onnx` | {parity.of_export:.4f} | {parity.of_run:.4f} |" in card.text
    assert json.loads((run / "run.json").read_text())["hash"] in card.text


def test_the_snippets_of_the_card_load_the_model(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NAME).symlink_to(run / "deploy" / "hub")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", (run / "deploy" / "hub" / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    inputs = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    expected = trainer.load(run, device="cpu").outputs(inputs).numpy()
    np.testing.assert_allclose(names["model"].outputs(inputs), expected, atol=1e-4)
    shapes = ast.literal_eval(capsys.readouterr().out.splitlines()[-1])
    network = trainer.load(run, device="cpu").network
    assert set(shapes.values()) == {tuple(tensor.shape) for tensor in network.state_dict().values()}


# The part of Triton's model_config.proto that is written here, from its documentation: field -> type, or message.
TRITON = {
    "Tensor": {"name": "string", "data_type": "DataType", "dims": "int64*", "label_filename": "string"},
    "QueuePolicy": {"max_queue_size": "uint32"},
    "Batching": {"max_queue_delay_microseconds": "uint64", "default_queue_policy": "QueuePolicy"},
    "ModelConfig": {
        "name": "string", "backend": "string", "max_batch_size": "int32", "input": "Tensor*", "output": "Tensor*",
        "dynamic_batching": "Batching",
    },
}  # fmt: skip
TRITON_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
DATA_TYPES = ["TYPE_INVALID", "TYPE_BOOL", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_STRING"]


def triton_config(text: str) -> Any:
    """The message in protobuf's text form. Raises: text_format.ParseError: an unknown field, or a wrong type."""
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", package="triton", syntax="proto3")
    enum = file.enum_type.add(name="DataType")
    for number, name in enumerate(DATA_TYPES):
        enum.value.add(name=name, number=number)
    for message, fields in TRITON.items():
        described = file.message_type.add(name=message)
        for number, (name, kind) in enumerate(fields.items(), 1):
            label, kind = (3, kind[:-1]) if kind.endswith("*") else (1, kind)
            field = described.field.add(name=name, number=number, label=label)
            if kind in (*TRITON, "DataType"):
                field.type, field.type_name = (14 if kind == "DataType" else 11), f".triton.{kind}"
            else:
                field.type = {"string": 9, "int64": 3, "int32": 5, "uint32": 13, "uint64": 4}[kind]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.ModelConfig"))()
    return text_format.Parse(text, config)


def test_tritons_configuration_fits_the_graph(run: Path) -> None:
    model = run / "deploy" / "triton" / NAME
    text = (model / "config.pbtxt").read_text()
    config = triton_config(text)
    assert config.name == NAME == model.name and config.backend == "onnxruntime"
    assert config.max_batch_size >= 2 and config.dynamic_batching.max_queue_delay_microseconds > 0
    session = onnxruntime.InferenceSession(str(model / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    for own, found in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [each.name for each in own] == [each.name for each in found]
        for each, node in zip(own, found, strict=True):
            assert (
                DATA_TYPES[each.data_type] == {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}[node.type]
            )
            # The first dimension is the batch, which Triton adds itself.
            assert isinstance(node.shape[0], str)
            assert list(each.dims) == [-1 if isinstance(size, str) else size for size in node.shape[1:]]
    labels = (model / config.output[0].label_filename).read_text().split()
    assert labels == load(run / "export" / "onnx").processing.outputs.names  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(text_format.ParseError):
        triton_config(text.replace("max_batch_size", "batch_size"))
    with pytest.raises(text_format.ParseError):
        triton_config(text.replace("TYPE_FP32", "TYPE_FLOAT"))


def only(properties: dict[str, Any]) -> dict[str, Any]:
    """An object with these members, all of them required, and no other."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


NAMED, TEXT, INTEGER = {"const": NAME}, {"type": "string"}, {"type": "integer", "minimum": 1}
LABELS = only({"app.kubernetes.io/name": NAMED})
METADATA = only({"name": NAMED, "labels": LABELS})
MEMORY = {"type": "string", "pattern": r"^[1-9]\d*Mi$"}


def probe(path: str, *numbers: str) -> dict[str, Any]:
    get = only({"path": {"const": path}, "port": {"const": "http"}})
    return only({"httpGet": get, **dict.fromkeys(numbers, INTEGER)})


SECRET = only({"name": NAMED, "key": TEXT, "optional": {"const": True}})
ENV = {
    "oneOf": [only({"name": TEXT, "value": TEXT}), only({"name": TEXT, "valueFrom": only({"secretKeyRef": SECRET})})]
}
CONTAINER = only({
    "name": TEXT,
    "image": TEXT,
    "ports": {"type": "array", "items": only({"name": {"const": "http"}, "containerPort": {"const": PORT}})},
    "env": {"type": "array", "items": ENV},
    "startupProbe": probe("/ready", "periodSeconds", "failureThreshold"),
    "readinessProbe": probe("/ready", "periodSeconds", "failureThreshold"),
    "livenessProbe": probe("/health", "periodSeconds", "timeoutSeconds"),
    "resources": only({"requests": only({"cpu": TEXT, "memory": MEMORY}), "limits": only({"memory": MEMORY})}),
    "securityContext": only({
        "allowPrivilegeEscalation": {"const": False},
        "readOnlyRootFilesystem": {"const": True},
        "capabilities": {"const": {"drop": ["ALL"]}},
    }),
})  # fmt: skip
POD = only({
    "automountServiceAccountToken": {"const": False},
    "terminationGracePeriodSeconds": INTEGER,
    "securityContext": only({
        "runAsNonRoot": {"const": True},
        "runAsUser": INTEGER,
        "seccompProfile": {"const": {"type": "RuntimeDefault"}},
    }),
    "containers": {"type": "array", "items": CONTAINER, "minItems": 1, "maxItems": 1},
})  # fmt: skip
DEPLOYMENT = only({
    "apiVersion": {"const": "apps/v1"},
    "kind": {"const": "Deployment"},
    "metadata": METADATA,
    "spec": only({
        "replicas": INTEGER,
        "selector": only({"matchLabels": LABELS}),
        "template": only({"metadata": only({"labels": LABELS}), "spec": POD}),
    }),
})  # fmt: skip
SERVICE = only({
    "apiVersion": {"const": "v1"},
    "kind": {"const": "Service"},
    "metadata": METADATA,
    "spec": only({
        "selector": LABELS,
        "ports": {"const": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }),
})  # fmt: skip


def test_the_manifest_of_kubernetes_has_the_form_of_its_objects(run: Path) -> None:
    """The form: fields of Deployment and Service as their reference documents them, and those that safety needs."""
    text = (run / "deploy" / "kubernetes" / "deployment.yaml").read_text()
    deployment, service = yaml.safe_load_all(text)
    Draft202012Validator(DEPLOYMENT).validate(deployment)
    Draft202012Validator(SERVICE).validate(service)
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    assert not Draft202012Validator(DEPLOYMENT).is_valid(deployment)


def docker_lines(run: Path) -> dict[str, list[str]]:
    """Instructions of the Dockerfile with their arguments, in order."""
    found: dict[str, list[str]] = {}
    for line in (run / "deploy" / "docker" / "Dockerfile").read_text().splitlines():
        if line and not line.startswith("#"):
            instruction, _, rest = line.partition(" ")
            found.setdefault(instruction, []).append(rest)
    return found


def required_packages(requirements: Path) -> set[str]:
    """Top-level modules of the pinned distributions and of all that they require."""
    wanted = {line.partition("==")[0] for line in requirements.read_text().split()}
    done: set[str] = set()
    while wanted - done:
        name = (wanted - done).pop()
        done.add(name)
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.add(requirement.name.lower())
    normal = {re.sub(r"[-_.]+", "-", name).lower() for name in done}
    return {
        module
        for module, names in packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", name).lower() in normal for name in names)
    }


BLOCKED = """
import runpy, sys
barred, *sys.argv[1:] = sys.argv[1:]
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in barred.split(","):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


def test_the_image_has_what_the_server_imports(run: Path, tmp_path: Path) -> None:
    """Its commands without Docker: the entry point runs on the copied files, with the pinned packages alone."""
    lines = docker_lines(run)
    assert lines["FROM"] == [f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"]
    assert lines["COPY"] == ["requirements.txt /app/", "package /app/package", "model /app/model"]
    (user,) = lines["USER"]
    assert int(user) > 0
    docker = run / "deploy" / "docker"
    allowed = required_packages(docker / "requirements.txt")
    barred = sorted(packages_distributions().keys() - allowed)
    assert {"torch", "pytorch_lightning", "transformers"} <= set(barred)
    python, dash_m, module, verb, *words = json.loads(lines["ENTRYPOINT"][0])
    assert (python, dash_m, module, verb) == ("python", "-m", "trainer", "serve")
    words = [word.replace("/app/model", str(docker / "model")).replace(str(PORT), "0") for word in words]
    command = [sys.executable, "-c", BLOCKED, ",".join(barred), verb, *words]
    environment = {**os.environ, "PYTHONPATH": str(docker / "package"), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = re.search(r"http://\S+:(\d+)", server.stdout.readline())
            assert url is not None
            with urllib.request.urlopen(f"http://127.0.0.1:{url[1]}/ready", timeout=60) as answer:
                assert answer.status == 200
        finally:
            server.terminate()
    assert server.returncode == 0
    assert list(tmp_path.iterdir()) == [], "the file system of the container is read-only"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deploy=helm"], "deploy=helm: no such target; possible: docker, hub, kubernetes, triton"),
        (["deploy=triton", "format=safetensors"], "deploy=triton: needs an export in ONNX"),
    ],
)
def test_mistakes_are_user_errors(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "deploy" / "triton" / NAME / "config.pbtxt").read_text()
    assert main(["export", f"run={run}", *words]) == 2
    assert message in capsys.readouterr().err
    assert (run / "deploy" / "triton" / NAME / "config.pbtxt").read_text() == before
    assert not list((run / "deploy").glob(".*"))

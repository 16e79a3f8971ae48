"""What is refused before it is imported, decoded or parsed, and what stays possible."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from trainer.cli import main
from trainer.config import versions
from trainer.config.compose import compose_mapping, typed, without_secrets
from trainer.config.yaml_limits import find_excess
from trainer.data import sources
from trainer.data.images import decode
from trainer.errors import UserError
from trainer.verbs.doctor.software import check_packages
from trainer.world import World


def test_a_stored_run_does_not_confirm_code_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "task=dcgan",
        "logger=none",
        "run.report=false",
        "task.features=torchscript:net.pt",
        f"task.features_sha256={'0' * 64}",
    ]
    mapping = without_secrets(compose_mapping(words))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(mapping))
    (tmp_path / "run.json").write_text("{}")
    assert main(["eval", f"run={tmp_path}"]) == 2
    assert "allows nothing by itself" in capsys.readouterr().err
    assert main(["eval", f"run={tmp_path}", f"task.features_sha256={'0' * 64}"]) == 2
    assert "no model.safetensors yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("lightning", "2.6.3"),
        ("pytorch-lightning", "2.6.2"),
        ("torch", "2.9.1+cu130"),
        ("pillow", "12.1.0"),
        ("transformers", "5.2"),
        ("hydra-core", "1.3.3"),
        ("hydra-core", "1.3.5"),
    ],
)
def test_a_banned_version_is_refused_before_it_is_imported(
    package: str, version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = versions.version
    monkeypatch.setattr(versions, "version", lambda name: version if name == package else installed(name))
    assert main(["plan", "task=cnn"]) == 2
    error = capsys.readouterr().err
    assert f"{package} {version} is installed" in error and "pip install" in error
    assert ("change the secrets" in error) == ("lightning" in package)
    config, _ = typed(compose_mapping(["task=cnn"]))
    (finding,) = check_packages(config, World("single", "cpu", 1, 1, 1))
    assert finding.status == "failure" and f"{package} {version} is refused" in finding.found


def test_doctor_warns_of_an_advisory_that_a_run_does_not_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = versions.version
    monkeypatch.setattr(versions, "version", lambda name: "3.12.0" if name == "aiohttp" else installed(name))
    versions.refuse_bad_versions()
    config, _ = typed(compose_mapping(["task=cnn"]))
    (finding,) = check_packages(config, World("single", "cpu", 1, 1, 1))
    assert finding.status == "warning" and "CVE-2026-22815" in finding.found and "'aiohttp>=3.13.4'" in finding.remedy


def test_modules_in_the_working_directory_take_no_package_s_place(tmp_path: Path) -> None:
    """In a new interpreter: of a single process, and of the ranks that it would start."""
    marker = tmp_path / "marker"
    for name in ("yaml.py", "hydra.py", "hydra_plugins/evil.py", "omegaconf/__init__.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"import os\nos.mknod({str(marker)!r})\n")
    for command in (["-m", "trainer", "--cfg", "job", "task=cnn"], ["-m", "trainer.rank", "join", "task=none"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert not marker.exists(), done.stderr
        assert ("optimizer:" in done.stdout) if "--cfg" in command else done.returncode == 2, done.stderr


def test_limits_of_yaml() -> None:
    assert find_excess("a: [1, 2]\nb: &x {c: 1}\nd: [*x, *x]\n") is None
    assert find_excess("- " * 60 + "x") is not None
    assert "itself" in str(find_excess("a: &a [*a]\n"))
    assert find_excess("[" + "x, " * 99_000 + "]") is None
    assert find_excess("[" + "x, " * 101_000 + "]") is not None


def test_an_image_of_the_largest_size_is_read_and_a_larger_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 64)
    for size, usable in (((8, 8), True), ((8, 9), False)):
        buffer = io.BytesIO()
        Image.new("L", size).save(buffer, format="PNG")
        if usable:
            assert decode.open_image({"bytes": buffer.getvalue()}).size == size
        else:
            with pytest.raises(decode.Unusable, match="8x9 pixels"):
                decode.open_image({"bytes": buffer.getvalue()})


def test_a_snapshot_of_the_hub_may_link_to_its_blobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    blobs, snapshot = tmp_path / "datasets--x" / "blobs", tmp_path / "datasets--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("text,label\na,0\n")
    (snapshot / "train.csv").symlink_to("../../blobs/1")
    assert len(sources.load_splits(sources.Source(None, None, str(snapshot)))["train"]) == 1
    (snapshot / "test.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(UserError, match="outside of the set"):
        sources.load_splits(sources.Source(None, None, str(snapshot)))

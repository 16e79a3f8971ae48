"""The wheel works from any directory, also one with packages called conf and tasks."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_code_and_values_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"trainer", "tasks", "conf"}
    assert "conf/config.yaml" in names
    assert "conf/task/cnn.yaml" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".parquet", ".ckpt", ".safetensors"))]


def test_it_trains_beside_the_users_own_conf_and_tasks(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    zipfile.ZipFile(wheel).extractall(site)
    for name in ("conf", "tasks"):
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "task=cnn", "debug=smoke", "trainer.accelerator=cpu", "trainer.devices=2"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"note: {work / 'tasks'} is not imported" in done.stderr
    assert list((work / "outputs" / "cnn").glob("*/model.safetensors"))

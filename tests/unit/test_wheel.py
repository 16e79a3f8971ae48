"""The wheel works for every verb, from any directory, also from one with packages called conf and tasks."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY

SMOKE = ["task=cnn", "debug=smoke", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel; the packages it depends on are this environment's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is not searched for further .pth files, so the editable installation stays invisible.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    zipfile.ZipFile(wheel).extractall(site)
    return folder / "bin" / "python"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("conf", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    return tmp_path


def test_the_wheel_holds_code_and_values_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"trainer", "tasks", "conf"}
    assert "conf/config.yaml" in names
    assert "conf/task/cnn.yaml" in names
    assert "trainer/launch/slurm.sbatch" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".parquet", ".ckpt", ".safetensors"))]


@pytest.fixture
def from_the_wheel(clean_python: Path, work: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """python ARGUMENTS of the clean environment, which has to succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(clean_python), *arguments]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_plan_and_a_job_script_from_the_wheel(
    from_the_wheel: Callable[..., subprocess.CompletedProcess[str]], clean_python: Path
) -> None:
    where = from_the_wheel("-c", "import trainer; print(trainer.__file__)").stdout
    assert Path(where.strip()).is_relative_to(clean_python.parents[1])
    assert "global batch" in from_the_wheel("-m", "trainer", "plan", *SMOKE).stdout
    script = from_the_wheel("-m", "trainer", *SMOKE, "launch=slurm", "launch.dry_run=true").stdout
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert "srun " in script


@pytest.mark.slow
def test_two_ranks_train_from_the_wheel(
    from_the_wheel: Callable[..., subprocess.CompletedProcess[str]], work: Path
) -> None:
    trained = from_the_wheel("-m", "trainer", *SMOKE, "trainer.devices=2")
    assert f"{work / 'tasks'} is not imported" in trained.stderr
    (weights,) = work.glob("outputs/cnn/*/model.safetensors")
    assert "val/accuracy" in from_the_wheel("-m", "trainer", "eval", f"run={weights.parent}").stdout

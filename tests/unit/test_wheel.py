"""The wheel works for every verb, from any directory, also from one with packages called conf and tasks."""

import os
import subprocess
import sys
import sysconfig
import venv
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


def test_every_verb_works_from_the_wheel(clean_python: Path, work: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def trainer(*words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(clean_python), "-m", "trainer", *words],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done

    where = subprocess.run(
        [str(clean_python), "-c", "import trainer; print(trainer.__file__)"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(clean_python.parents[1])
    cpu = ["task=cnn", "debug=smoke", "trainer.accelerator=cpu"]
    trained = trainer(*cpu, "trainer.devices=2")
    assert f"{work / 'tasks'} is not imported" in trained.stderr
    (weights,) = work.glob("outputs/cnn/*/model.safetensors")
    assert "val/accuracy" in trainer("eval", f"run={weights.parent}").stdout
    assert "global batch" in trainer("plan", *cpu).stdout
    script = trainer(*cpu, "launch=slurm", "launch.dry_run=true").stdout
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert "srun " in script

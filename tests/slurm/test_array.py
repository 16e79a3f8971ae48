"""A sweep as a SLURM array."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SPIRALS_WORDS
from slurm_cluster import Cluster
from watching import wait_until

pytestmark = pytest.mark.slurm


def test_a_sweep_is_an_array_and_submits_failed_jobs_again(cluster: Cluster, tmp_path: Path) -> None:
    swept = "model.width=4,8,16"
    words = [*SPIRALS_WORDS, "trainer.max_epochs=1", "launch.nodes=2", swept]
    line = [sys.executable, "-m", "trainer", "-m", "launch=slurm", *words]
    assert "#SBATCH --array=1,2,3\n" in cluster.run(*line, "launch.dry_run=true", cwd=tmp_path)
    job = cluster.submitted(cluster.run(*line, cwd=tmp_path))
    (directory,) = (tmp_path / "outputs" / "sweeps").iterdir()
    wait_until(lambda: not queued(cluster, job.number), 200)
    assert [path.name for path in sorted(directory.glob("job-*.log"))] == ["job-1.log", "job-2.log", "job-3.log"]

    runs = sorted(directory.glob("job-*/*/*/run.json"))
    assert [json.loads(run.read_text())["status"] for run in runs] == ["finished"] * 3
    assert [json.loads(run.read_text())["attempts"][0]["world_size"] for run in runs] == [2] * 3
    # As if the second had failed: it alone is submitted again.
    runs[1].write_text(runs[1].read_text().replace('"status": "finished"', '"status": "failed"'))
    again = cluster.submitted(cluster.run(*line, cwd=tmp_path))
    assert "still in SLURM's queue" in cluster.run(*line, cwd=tmp_path)
    wait_until(lambda: not queued(cluster, again.number), 120)
    assert "all jobs are finished" in cluster.run(*line, cwd=tmp_path)
    attempts = [len(json.loads(run.read_text())["attempts"]) for run in runs]
    assert attempts == [1, 2, 1]


def queued(cluster: Cluster, number: str) -> list[str]:
    command = ["squeue", "--noheader", "--array", f"--job={number}"]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.splitlines()

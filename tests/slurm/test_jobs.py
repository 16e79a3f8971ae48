"""The same command on a cluster: it runs, stops before its time limit, is requeued, cancelled, fails, is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, SPIRALS, SPIRALS_WORDS
from runs import Facts, facts_of, only_run
from slurm_cluster import Cluster
from watching import WATCHED_WORDS, last_step, wait_until, written_lines

pytestmark = pytest.mark.slurm

SHORT = [*SPIRALS_WORDS, "trainer.max_epochs=2", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false"]
TWO_NODES = "launch.nodes=2"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """The same experiment on two ranks of one machine."""
    directory = tmp_path_factory.mktemp("expected")
    command = [sys.executable, "-m", "trainer", *SHORT, "trainer.devices=2"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=280)
    return facts_of(only_run(directory / "outputs"))


@pytest.mark.parametrize("starter", ["srun", "torchrun"])
def test_two_nodes_give_the_run_of_two_ranks(starter: str, expected: Facts, cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path, *SHORT, TWO_NODES, f"launch.starter={starter}")

    assert job.wait(240) == "COMPLETED", job.output()
    assert facts_of(only_run(tmp_path / "outputs")) == expected


def test_bert_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    words = ["task=bert", "model=bert_tiny", "logger=none", "trainer.max_epochs=1", "trainer.limit_train_batches=4"]
    job = cluster.submit(tmp_path, *words, TWO_NODES, "trainer.limit_val_batches=2")

    assert job.wait(180) == "COMPLETED", job.output()
    run = only_run(tmp_path / "outputs")
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["attempts"][0]["launcher"] == "slurm"
    assert (run / "model.safetensors").exists()


def watched(directory: Path, num_steps: int) -> list[str]:
    (directory / "watch").mkdir()
    return [*WATCHED_WORDS, TWO_NODES, "trainer.max_epochs=null", f"trainer.max_steps={num_steps}", "run.name=watched"]


def check_no_step_lost_or_repeated(directory: Path, num_steps: int) -> None:
    """Each of two ranks has done each step once over all attempts."""
    done = sorted(line["step"] for line in written_lines(directory / "watch"))
    assert done == sorted([*range(1, num_steps + 1)] * 2)


def record_of(directory: Path) -> dict:
    return json.loads((directory / "outputs" / "watched" / "watched" / "run.json").read_text())


# SLURM may signal 20 s after a start, most of which a busy machine needs to start the ranks: then many attempts follow.
@pytest.mark.timeout(1100)
def test_a_job_saves_before_its_time_limit_and_continues_when_requeued(cluster: Cluster, tmp_path: Path) -> None:
    num_steps = 300
    # SLURM counts limits in minutes, checks them every 30 s, and sends the signal up to that much early.
    limit = ["launch.time_limit=1", "launch.stop_before_s=10"]
    words = [*watched(tmp_path, num_steps), *limit, "logger=wandb", "logger.mode=offline"]
    job = cluster.submit(tmp_path, *words, WATCH=str(tmp_path / "watch"), STEP_S="0.15")
    wait_until(lambda: record_of(tmp_path)["status"] == "stopped" if last_step(tmp_path / "watch") else False, 180)
    first = record_of(tmp_path)

    assert job.wait(850) == "COMPLETED", job.output()
    assert "queued again" in job.output()
    record = record_of(tmp_path)
    assert record["status"] == "finished"
    assert len(record["attempts"]) >= 2
    # On a busy machine the limit may also come before the first step of an attempt.
    assert all(attempt["cause"].startswith("on request") for attempt in record["attempts"][:-1])
    assert record["wandb_id"] == first["wandb_id"]
    runs = list((tmp_path / "outputs" / "watched" / "watched" / "wandb").glob("offline-run-*"))
    assert len(runs) >= 2
    assert all(run.name.endswith(f"-{record['wandb_id']}") for run in runs)
    check_no_step_lost_or_repeated(tmp_path, num_steps)


def test_scontrol_requeue(cluster: Cluster, tmp_path: Path) -> None:
    num_steps = 120
    job = cluster.submit(tmp_path, *watched(tmp_path, num_steps), WATCH=str(tmp_path / "watch"), STEP_S="0.1")
    wait_until(lambda: last_step(tmp_path / "watch") > 5, 180)
    cluster.run("scontrol", "requeue", job.number)

    assert job.wait(180) == "COMPLETED", job.output()
    assert record_of(tmp_path)["attempts"][0]["cause"].startswith("on request after step")
    check_no_step_lost_or_repeated(tmp_path, num_steps)


def test_scancel_saves_and_does_not_requeue(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit(tmp_path, *watched(tmp_path, 5000), WATCH=str(tmp_path / "watch"), STEP_S="0.1")
    wait_until(lambda: last_step(tmp_path / "watch") > 5, 180)
    cluster.run("scancel", job.number)

    assert job.wait(180) == "CANCELLED"
    wait_until(lambda: cluster.num_idle_nodes() == 2, 30)
    assert record_of(tmp_path)["status"] == "stopped"
    last = (tmp_path / "outputs" / "watched" / "watched" / "checkpoints" / "last").resolve().name
    assert last == f"step-{last_step(tmp_path / 'watch'):08d}"
    assert "Restarts=0" in job.facts()


FAULTY = [f"plugins=[{SPIRALS},{REPOSITORY / 'tests' / 'fixtures' / 'faulty'}]", "task.name=faulty"]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_before_the_first_step_ends_the_job(failing: int, cluster: Cluster, tmp_path: Path) -> None:
    """The signal by which srun ends the other one is no request to stop, after which the job would be queued again."""
    job = cluster.submit(tmp_path, *SPIRALS_WORDS, *FAULTY, TWO_NODES, FAULT=f"early:{failing}")
    assert job.wait(180) == "FAILED", job.output()
    assert "Restarts=0" in job.facts()
    # Rank 0 prints for all; an error that another one has alone is in its log.
    log = only_run(tmp_path / "outputs") / "logs" / "rank-1.log"
    assert "the planted user error" in (job.output() if failing == 0 else log.read_text())


@pytest.mark.parametrize("starter", ["srun", "torchrun"])
def test_a_failed_rank_frees_both_nodes(starter: str, cluster: Cluster, tmp_path: Path) -> None:
    words = [*SPIRALS_WORDS, *FAULTY, "trainer.max_epochs=3000", TWO_NODES, f"launch.starter={starter}"]
    job = cluster.submit(tmp_path, *words, "trainer.log_every_n_steps=1", FAULT="sigkill:1:40")
    wait_until(lambda: '"step": 39' in metrics_text(tmp_path), 180)

    # Far less than launch.timeout_s, for which the other rank would wait in its collective.
    assert job.wait(180) == "FAILED", job.output()
    wait_until(lambda: cluster.num_idle_nodes() == 2, 60)
    assert "rank 1" in job.output()


def metrics_text(directory: Path) -> str:
    return "".join(path.read_text() for path in directory.glob("outputs/*/*/metrics.jsonl"))


def test_what_slurm_gave_is_compared_with_what_was_asked(cluster: Cluster, tmp_path: Path) -> None:
    def refused(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode != 0
        return done.stdout + done.stderr

    line = [sys.executable, "-m", "trainer", *SHORT]
    assert "trainer.devices=2: slurm started 1 rank on" in refused("srun", "-N2", "-n2", *line, "trainer.devices=2")
    assert "srun started 2,1 tasks" in refused("srun", "-N2", "-n3", *line)
    assert "trainer.num_nodes=3" in refused("srun", "-N2", "-n2", *line, "trainer.num_nodes=3")
    assert "SLURM gave 2 tasks on 2 nodes" in refused("salloc", "-N2", "-n2", *line)
    script = tmp_path / "job"
    script.write_text(cluster.run(*line, "launch=slurm", TWO_NODES, "launch.dry_run=true"))
    output = refused("sbatch", "--wait", "--nodes=1", f"--output={tmp_path / 'log'}", str(script))
    assert "launch.nodes=2: the ranks are on 1 node of the job" in (tmp_path / "log").read_text(), output


@pytest.mark.parametrize("text", ["a b", "$(id)", "'", '"; #', "\\", "#x", "a --uid=0", "ü", "a\\'b"])
def test_sbatch_reads_each_setting_as_one_word(text: str, cluster: Cluster, tmp_path: Path) -> None:
    """The comment of a job is any text; sbatch shows what it has read."""
    value = text.replace("\\", "\\\\").replace("'", "\\'")
    words = ["launch.nodes=1", f"launch.sbatch_options=['--comment={value}', '--hold']", "run.name='a name'"]
    job = cluster.submit(tmp_path, *SHORT, *words)
    facts = cluster.run("squeue", "--noheader", f"--job={job.number}", "--format=%k|%j").strip()
    cluster.run("scancel", job.number)
    assert facts == f"{text}|a name"

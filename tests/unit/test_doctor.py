"""The doctor finds what would end a run, with the remedy, and nothing on a machine that is in order."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, SPIRALS_WORDS, CommandLine
from slurm_cluster import Cluster, cluster
from watching import wait_until

from trainer.cli import main
from trainer.config.compose import compose_mapping, typed
from trainer.config.schema import Config
from trainer.faults.signals import STOP_FILE_VARIABLE
from trainer.verbs import doctor
from trainer.verbs.doctor import examine
from trainer.verbs.doctor.report import Check, Finding
from trainer.verbs.doctor.storage import needed_bytes
from trainer.world import World

__all__ = ["cluster"]

ONE_RANK = World("single", "cpu", 1, 1, 1)


@dataclass(frozen=True)
class Case:
    """Faults planted together in the current directory and the environment.

    findings: of each fault, a part of what is found and a part of the remedy.
    """

    words: list[str]
    findings: list[tuple[str, str]]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def package(name: str, version: str) -> dict[str, str]:
    """Metadata of an installed package, ahead of the real one's."""
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    return {f"site/{name.replace('-', '_')}-{version}.dist-info/METADATA": text}


NOBODY = "http://nowhere.invalid"
NO_PROGRAMS = {"PATH": "nothing"}
IN_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "4"}

CASES: dict[str, Case] = {
    "installation": Case(
        ["performance.compile=true"],
        [
            ("transformers 5.2.0 is refused: config.json of a model runs code", "'transformers>=5.10.1'"),
            ("lightning 2.6.3 is refused: an upload with malicious code", "uninstall lightning"),
            ("rich 12.0.0 is outside >=13", "pip install 'rich>=13'"),
            ("torchvision::nms does not exist", "uninstall torchvision"),
            ("is imported instead of datasets", "rename it"),
            ("there is no g++", "performance.compile=false"),
        ],
        NO_PROGRAMS,
        {
            **package("transformers", "5.2.0"),
            **package("lightning", "2.6.3"),
            **package("rich", "12.0.0"),
            "site/torchvision/__init__.py": "raise RuntimeError('operator torchvision::nms does not exist')\n",
            "datasets/__init__.py": "",
        },
    ),
    "places": Case(
        [
            "task=cnn",
            "data=image_folder",
            "data.path=photographs",
            "run.root=taken",
            "logger=wandb",
            "logger.mode=online",
        ],
        [
            ("photographs: no such file", "data.path=PATH"),
            ("taken is a file", "run.root=DIRECTORY"),
            ("occupied is a file", "TRAINER_CACHE=DIRECTORY"),
            ("nowhere.invalid cannot be reached", "WANDB_BASE_URL"),
        ],
        {"TRAINER_CACHE": "occupied", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": NOBODY},
        {"taken": "text", "occupied": "text"},
    ),
    "nodes": Case(
        ["trainer.num_nodes=2", "launch.endpoint=nowhere.invalid:29400", "launch.interface=nosuch0"],
        [("launch.interface=nosuch0", "launch.interface=NAME"), ("no address", "launch.endpoint=HOST:PORT")],
    ),
    "no sbatch": Case(["launch=slurm"], [("there is no sbatch", "launch.dry_run=true")], NO_PROGRAMS),
    "ranks of a job that srun has not started": Case(
        [], [("SLURM gave 4 tasks on 2 nodes", "trainer.devices")], IN_A_JOB
    ),
    "a job with another number of nodes": Case(
        ["launch=slurm", "launch.nodes=2"],
        [("the ranks are on 1 node of the job", "launch.nodes")],
        {**IN_A_JOB, STOP_FILE_VARIABLE: "stopped", "SLURM_STEP_NUM_NODES": "1"},
    ),
    "ranks that cannot meet": Case(
        ["trainer.devices=2"], [("nosuch0", "unset GLOO_SOCKET_IFNAME")], {"GLOO_SOCKET_IFNAME": "nosuch0"}
    ),
    "a rank that dies": Case(
        ["trainer.devices=2"],
        [("rank 1 was ended by SIGKILL", "memory")],
        files={"site/sitecustomize.py": "import os\nif os.environ.get('RANK') == '1':\n    os.kill(os.getpid(), 9)\n"},
    ),
}


@pytest.fixture
def patient(in_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose `site` comes first on the path, also in children; no key, cache or hub of the user."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(in_directory / "none"))
    monkeypatch.setenv("TRAINER_CACHE", str(in_directory / "cache"))
    monkeypatch.setenv("HF_HOME", str(in_directory / "hub"))
    monkeypatch.setenv("PYTHONPATH", f"{in_directory / 'site'}:{REPOSITORY}")
    monkeypatch.syspath_prepend(in_directory / "site")
    return in_directory


def findings_of(output: str) -> list[Finding]:
    return [Finding(**entry) for entry in json.loads(output)["findings"]]


def failures_of(output: str) -> list[Finding]:
    return [finding for finding in findings_of(output) if finding.status == "failure"]


def assert_found(findings: list[Finding], faults: Sequence[tuple[str, str]]) -> None:
    for found, remedy in faults:
        assert [f for f in findings if found in f.found and remedy in f.remedy], (found, findings)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_planted_faults_are_found(
    name: str, patient: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    for path, text in case.files.items():
        (patient / path).parent.mkdir(parents=True, exist_ok=True)
        (patient / path).write_text(text)
    for variable, value in case.env.items():
        monkeypatch.setenv(variable, value)

    code = main(["doctor", "--json", *SPIRALS_WORDS, *case.words])

    failures = failures_of(capfd.readouterr().out)
    assert code == 2
    assert_found(failures, case.findings)
    assert len(failures) <= len(case.findings) + 1, failures
    assert not (patient / "outputs").exists()


def test_on_a_machine_in_order_two_ranks_really_sum(patient: Path, command_line: CommandLine) -> None:
    done = command_line("doctor", "--json", *SPIRALS_WORDS, "trainer.devices=2", timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["fit"]
    (summed,) = [finding for finding in findings_of(done.stdout) if finding.name == "all-reduce"]
    assert summed.status == "ok"
    assert "2 ranks of this node, gloo: the sum is right" in summed.found
    assert "GB/s" in summed.found


# Every rank's all-reduce adds something to the first element; single numbers, such as counts, are summed as they are.
WRONG_SUM = """import torch.distributed as dist
real = dist.all_reduce
def all_reduce(values, *arguments, **options):
    real(values, *arguments, **options)
    if values.numel() > 1:
        values[0] += 1
dist.all_reduce = all_reduce
"""


def test_a_wrong_sum_is_a_failure(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (patient / "site").mkdir()
    (patient / "site" / "sitecustomize.py").write_text(WRONG_SUM)
    # As torchrun starts a rank; a sharding strategy has a process group also on one.
    environment = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in {**environment, "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    one_rank = replace(ONE_RANK, launcher="torchrun")
    (found,) = examine([doctor.check_all_reduce], config("strategy=fsdp2"), one_rank)
    assert (found.status, found.name) == ("failure", "all-reduce")
    # One element in each of the five repetitions.
    assert "5 wrong elements in the sum of an all-reduce over 1 rank" in found.found
    assert found.remedy


LIMITED = ["bash", "-c", 'ulimit -n 40 && exec "$@"', "_"]


def test_people_get_a_table_with_the_remedy(patient: Path) -> None:
    (patient / "tasks").mkdir()
    (patient / "taken").write_text("text")
    command = [*LIMITED, sys.executable, "-m", "trainer", "doctor", *SPIRALS_WORDS, "run.root=taken"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 2, done.stderr
    text = " ".join(done.stdout.replace("│", "").split())
    assert "-> run.root=DIRECTORY" in text
    assert "40 per process, and 1 rank may need 52 -> " in text
    assert "-> ulimit -n 52" in text or "-> raise nofile" in text
    # A folder that is not used ends no run.
    assert "name yours with plugins=[FOLDER]" in text
    # run.root is reported by validation too.
    assert "3 failures, " in text or "2 failures, " in text


def test_user_errors_are_printed_as_by_other_verbs(patient: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *SPIRALS_WORDS, "optimizer.lrr=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean lr?" in captured.err


def test_nothing_is_imported_before_the_configuration_is_valid(patient: Path) -> None:
    words = ["doctor", *SPIRALS_WORDS, "optimizer.lr=-1"]
    code = f"import sys\nfrom trainer.cli import main\nmain({words!r})\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


NAMESPACE = ["unshare", "--map-root-user", "--mount", "bash", "-c"]
# (mounts, words, of each fault what is found and the remedy)
MOUNTS: dict[str, tuple[list[str], list[str], list[tuple[str, str]]]] = {
    "full": (
        ["-o size=256k,nr_inodes=9 tmpfs outputs", "-o ro tmpfs cache"],
        [],
        [
            ("free; 1.0 GiB needed", "larger disk"),
            ("inodes free", "delete small files"),
            ("cache cannot be written: Read-only", "TRAINER_CACHE=DIRECTORY"),
        ],
    ),
    "read-only, for GPUs": (
        ["-o ro tmpfs outputs", "-o size=16m tmpfs /dev/shm"],
        ["trainer.accelerator=cuda", "trainer.devices=2"],
        [
            ("outputs cannot be written: Read-only", "run.root=DIRECTORY"),
            ("NCCL advises", "--shm-size=1g"),
            ("no GPU is visible", "trainer.accelerator"),
        ],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MOUNTS)
def test_file_systems(name: str, patient: Path) -> None:
    if subprocess.run([*NAMESPACE, "mount -t tmpfs tmpfs /mnt"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    mounts, words, faults = MOUNTS[name]
    for folder in ("outputs", "cache"):
        (patient / folder).mkdir()
    script = " && ".join([f"mount -t tmpfs {mount}" for mount in mounts] + ['exec "$@"'])
    command = [*NAMESPACE, script, "_", sys.executable, "-m", "trainer", "doctor", "--json", *SPIRALS_WORDS, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 2, done.stderr
    assert_found(failures_of(done.stdout), faults)


def look(check: Check, *words: str) -> list[Finding]:
    """One check by itself."""
    return examine([check], config(*words), ONE_RANK)


def test_data_that_is_there_but_empty(patient: Path) -> None:
    words = ("task=cnn", "data=image_folder", "data.path=photographs")
    folder = patient / "photographs"
    folder.mkdir()
    assert_found(look(doctor.check_data, *words), [("the directory is empty", "data.path=PATH")])
    (folder / "a.png").touch()
    assert_found(look(doctor.check_data, *words), [("a.png is empty", "copy it again")])
    (folder / "a.png").write_bytes(b"an image")
    assert [f.status for f in look(doctor.check_data, *words)] == ["ok"]


def test_data_on_a_hub_without_a_route(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    words = ("task=cnn", "data=cifar10")
    assert_found(look(doctor.check_data, *words), [("uoft-cs/cifar10 is not in", "data.path=DIRECTORY")])
    (patient / "hub" / "datasets" / "uoft-cs___cifar10").mkdir(parents=True)
    assert [f.found for f in look(doctor.check_data, *words)] == ["uoft-cs/cifar10 is in the local cache"]


@pytest.mark.slow  # imports deepspeed
def test_an_operator_of_deepspeed_without_a_compiler(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {**NO_PROGRAMS, "DS_PIN_MEMORY_BACKEND": "native"}.items():
        monkeypatch.setenv(variable, value)
    found = look(doctor.check_deepspeed, "strategy=deepspeed_stage_2_offload")
    assert_found(found, [("PinMemoryBuilder has to be built, and there is no C++ compiler", "apt-get install g++")])
    assert [f.status for f in found] == ["failure"]


def test_an_endpoint_that_is_taken(patient: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ("trainer.num_nodes=2", f"launch.endpoint={endpoint}")
        found = look(doctor.check_network, *words)
    assert_found(found, [(f"cannot listen at {endpoint}", "a free port")])
    assert "failure" not in [f.status for f in look(doctor.check_network, *words)]


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="SLURM's commands are not here")
def test_a_cluster_that_does_not_answer(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "ClusterName=none\nSlurmctldHost=localhost\nSlurmctldPort=1\nAuthType=auth/none\nMessageTimeout=1\n"
    (patient / "slurm.conf").write_text(settings)
    monkeypatch.setenv("SLURM_CONF", str(patient / "slurm.conf"))
    assert_found(look(doctor.check_slurm, "launch=slurm"), [("sbatch refuses 1 node", "launch.partition")])


@pytest.mark.slurm
def test_a_real_cluster_takes_the_job_or_refuses_it(cluster: Cluster, tmp_path: Path) -> None:
    def asked(*words: str) -> Finding:
        command = [sys.executable, "-m", "trainer", "doctor", "--json", *SPIRALS_WORDS, "launch=slurm", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, check=False, timeout=280
        )
        (finding,) = [finding for finding in findings_of(done.stdout) if finding.name == "SLURM"]
        assert done.returncode == (2 if finding.status == "failure" else 0), done.stdout
        return finding

    assert asked("launch.nodes=2").status == "ok"
    for words in (["launch.nodes=3", "batch.global_size=33"], ["launch.partition=night"]):
        finding = asked(*words)
        assert finding.status == "failure"
        assert "sbatch refuses" in finding.found
        assert "partitions here: main (2 nodes" in finding.remedy
    assert cluster.run("squeue", "--noheader") == ""


@pytest.mark.slurm
def test_the_ranks_of_a_real_job_sum_over_its_nodes(cluster: Cluster, tmp_path: Path) -> None:
    words = ["-m", "trainer", "doctor", "--json", *SPIRALS_WORDS]
    output = cluster.run("srun", "-N2", sys.executable, *words, cwd=tmp_path)
    (summed,) = [finding for finding in findings_of(output) if finding.name == "all-reduce"]
    assert "2 ranks on 2 nodes, gloo: the sum is right" in summed.found


def config(*words: str) -> Config:
    return typed(compose_mapping([*SPIRALS_WORDS, *words]))[0]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ranks_that_never_answer_end_with_the_check(patient: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.verbs.doctor.all_reduce.STALL_S", 3.0)
    (patient / "site").mkdir()
    note = f"open('{patient}/rank-' + str(os.getpid()), 'w')"
    asleep = f"import os, time\nif 'RANK' in os.environ:\n    {note}\n    time.sleep(600)\n"
    (patient / "site" / "sitecustomize.py").write_text(asleep)
    two_ranks = replace(ONE_RANK, launcher="elastic", world_size=2, local_world_size=2)
    found = examine([doctor.check_all_reduce], config("trainer.devices=2"), two_ranks)
    assert_found(found, [("2 ranks of this node: no answer", "127.0.0.1")])
    started = [int(file.name.partition("-")[2]) for file in patient.glob("rank-*")]
    assert len(started) == 2
    wait_until(lambda: not any(map(lives, started)), 60)


def test_room_is_what_checkpoints_take(patient: Path) -> None:
    """LeNet-5 with AdamW: weights and two means, 12 bytes a parameter, four times, and 4 for the weights alone."""
    lenet, _ = typed(compose_mapping(["task=cnn", "logger=none", "optimizer=adamw", "checkpoint.keep=2"]))
    assert needed_bytes(lenet) == (61_706 * (4 * 12 + 4), "for 4 checkpoints and the weights")
    assert needed_bytes(config())[0] == 2**30

"""A real SLURM of two nodes on this machine, in a temporary directory and on free ports."""

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from watching import free_port, wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")
FINAL_STATES = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# How long a credential lives is also how long a requeued job waits.
AuthInfo=socket={directory}/munge.socket,cred_expire=5
StateSaveLocation={directory}
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmdSpoolDir={directory}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=10
ReturnToService=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={first_port} CPUs=4
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={second_port} CPUs=4
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE
"""


@dataclass(frozen=True)
class Cluster:
    """The commands of a user of the cluster."""

    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """A command's output. Fails with it where the exit code is not 0."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, directory: Path, *words: str, **environment: str) -> "Job":
        """python -m trainer launch=slurm WORDS in a directory."""
        command = [sys.executable, "-m", "trainer", "launch=slurm", *words]
        return self.submitted(self.run(*command, cwd=directory, **environment))

    def submitted(self, text: str) -> "Job":
        """The job that the trainer's output names."""
        number, log = re.search(r"^job (\d+)", text), re.search(r"tail -F (\S+)", text)
        assert number is not None, text
        return Job(self, number.group(1), Path(log.group(1)) if log else Path())

    def num_idle_nodes(self) -> int:
        """Nodes without a job."""
        return int(self.run("sinfo", "--noheader", "--states=idle", "--format=%D").strip() or 0)


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    cluster: Cluster
    number: str
    log: Path

    def facts(self) -> str:
        """scontrol's description of it."""
        return self.cluster.run("scontrol", "show", "job", "--oneliner", self.number)

    def state(self) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED..."""
        match = re.search(r"JobState=(\w+)", self.facts())
        assert match is not None
        return match.group(1)

    def wait(self, timeout_s: float = 120) -> str:
        """Wait for its end. Returns: its final state."""
        wait_until(lambda: self.state() in FINAL_STATES, timeout_s)
        return self.state()

    def output(self) -> str:
        """The text of its log."""
        return self.log.read_text() if self.log.is_file() else ""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    paths = [shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in DAEMONS]
    if None in paths or os.geteuid() != 0:
        pytest.skip("needs root and Debian's slurmd, slurmctld, slurm-client and munge")
    munged, slurmctld, slurmd = (str(path) for path in paths)
    directory = tmp_path_factory.mktemp("slurm")
    directory.chmod(0o755)
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    configuration = directory / "slurm.conf"
    ports = {name: free_port() for name in ("controller_port", "first_port", "second_port")}
    configuration.write_text(CONFIGURATION.format(directory=directory, **ports))
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    files = [f"--{name}={directory}/munge.{name.partition('-')[0]}" for name in ("socket", "pid-file", "log-file")]
    commands = [
        [munged, "--foreground", "--force", f"--key-file={key}", f"--seed-file={directory}/munge.seed", *files],
        [slurmctld, "-D", "-c"],
        [slurmd, "-D", "-N", "n1"],
        [slurmd, "-D", "-N", "n2"],
    ]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (directory / f"daemon-{number}.log").open("wb") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            if command[0] == munged:
                wait_until((directory / "munge.socket").exists, 20, lambda: daemons[0].poll() is None)
        cluster = Cluster(environment)
        wait_until(lambda: _answers(environment) and cluster.num_idle_nodes() == 2, 60)
        yield cluster
        subprocess.run(["scancel", "--user=root"], env=environment, check=False, timeout=20)
        wait_until(lambda: cluster.num_idle_nodes() == 2, 60)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _answers(environment: dict[str, str]) -> bool:
    return subprocess.run(["sinfo"], env=environment, capture_output=True, check=False, timeout=30).returncode == 0

"""NCCL's flight recorder: a rank is asked for its last collectives through torch's pipe, and torch's tool reads them.

There is no NCCL here: the rank's side is a thread that does what torch's does, with a dump of torch's form.
"""

from __future__ import annotations

import os
import pickle
import select
import shlex
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SPIRALS_WORDS
from torch.distributed.flight_recorder.fr_trace import main as analyse

from trainer.config.compose import compose_mapping, typed
from trainer.faults.flight_recorder import FILE_VARIABLE, PIPE_VARIABLE, dump, page_lines, recorder_environment
from trainer.faults.hang_page import RANKS_FOLDER, write_page
from trainer.launch.process_group import process_group
from trainer.world import World

HEADERS = Path(torch.__file__).parent / "include" / "torch" / "csrc" / "distributed" / "c10d"


def collective(number: int, name: str) -> dict[str, Any]:
    return {
        "record_id": number, "pg_id": 0, "process_group": ("0", "default_pg"), "collective_seq_id": number + 1,
        "p2p_seq_id": 0, "op_id": number + 1, "profiling_name": f"nccl:{name}", "frames": [], "is_p2p": False,
        "input_sizes": [[3]], "output_sizes": [[3]], "input_dtypes": ["Float"], "output_dtypes": ["Float"],
        "state": "scheduled", "time_created_ns": number, "time_discovered_started_ns": None,
        "time_discovered_completed_ns": None, "retired": False, "timeout_ms": 1000,
    }  # fmt: skip


def content_of(names: list[str]) -> bytes:
    """A dump of one rank of two."""
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    entries = [collective(number, name) for number, name in enumerate(names)]
    return pickle.dumps({"version": "2.10", "pg_config": config, "pg_status": {}, "entries": entries}, protocol=2)


def answer(reader: int, file: Path, content: bytes) -> None:
    """What torch's thread does: wait for the pipe, and write the file, in two parts here."""
    select.select([reader], [], [], 30)
    assert os.read(reader, 8)
    with file.open("wb") as stream:
        stream.write(content[:20])
        stream.flush()
        stream.write(content[20:])
    os.close(reader)


def ask(rank: int, names: list[str], folder: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    for name, value in recorder_environment(folder).items():
        monkeypatch.setenv(name, value)
    pipe = Path(f"{os.environ[PIPE_VARIABLE]}{rank}.pipe")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    file = Path(f"{os.environ[FILE_VARIABLE]}{rank}")
    thread = threading.Thread(target=answer, args=(reader, file, content_of(names)))
    thread.start()
    found = dump(rank, target, within_s=30)
    thread.join()
    return found


def test_the_variables_are_those_of_the_installed_torch() -> None:
    known = "".join((HEADERS / name).read_text() for name in ("FlightRecorder.hpp", "ProcessGroupNCCL.hpp"))
    names = set(recorder_environment(Path("folder")))
    # Read in sources that are installed as libraries only.
    in_libraries = {FILE_VARIABLE, "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_INCLUDE_STACK_TRACE"}
    assert {name for name in names if f'"{name}"' not in known and name not in known} <= in_libraries


@pytest.mark.parametrize("accelerator", ["cuda", "cpu"])
def test_ranks_on_gpus_have_them_when_their_group_is_created(accelerator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in recorder_environment(Path("folder")):
        monkeypatch.delenv(name, raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "lo")
    seen: dict[str, str] = {}
    monkeypatch.setattr("trainer.launch.rendezvous.agent_store", lambda *arguments: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: seen.update(os.environ))
    config = typed(compose_mapping(SPIRALS_WORDS))[0]
    with process_group(config, World("elastic", accelerator, 2, 1, 2)):
        folder = Path(seen.get(PIPE_VARIABLE, "nowhere/x")).parent
        assert folder.is_dir() == (accelerator == "cuda")
    assert not folder.exists()
    on_gpus = recorder_environment(folder).items()
    assert (on_gpus <= seen.items()) == (accelerator == "cuda")


def test_the_page_leads_to_the_collective_that_a_rank_has_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = tmp_path / "faults"
    target = faults / RANKS_FOLDER
    target.mkdir(parents=True)
    for rank, names in enumerate((["all_reduce", "all_gather"], ["all_reduce", "broadcast"])):
        folder = tmp_path / f"rank-{rank}"
        folder.mkdir()
        assert ask(rank, names, folder, target, monkeypatch)
    facts = {
        "rank": 0, "host": "here", "pid": 1, "step": 7, "no_step_s": 60.0, "state": "communication", "state_s": 60.0,
        "network": "", "stopped": False, "main_thread": "0x1", "stacks": "",
    }  # fmt: skip
    page = write_page(faults, {0: facts, 1: {**facts, "rank": 1}}, world_size=2).read_text()
    (line,) = [line for line in page.split("\n") if line.startswith("last collectives of rank 0, 1: ")]
    command = shlex.split(line.partition(": ")[2])
    assert command[:3] == ["python", "-m", "torch.distributed.flight_recorder.fr_trace"]
    with caplog.at_level("INFO"):
        analyse(command[3:])
    assert "all_gather" in caplog.text and "broadcast" in caplog.text


def test_a_rank_that_does_not_answer_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nccl_trace_rank_0").write_bytes(b"of an earlier hang")
    monkeypatch.delenv(PIPE_VARIABLE, raising=False)
    assert not dump(0, tmp_path, within_s=30)
    assert page_lines(tmp_path, 2) == []
    for name, value in recorder_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert not dump(0, tmp_path, within_s=30)
    os.mkfifo(f"{os.environ[PIPE_VARIABLE]}0.pipe")
    assert not dump(0, tmp_path, within_s=30)
    reader = os.open(f"{os.environ[PIPE_VARIABLE]}0.pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert not dump(0, tmp_path, within_s=0.1)
    os.close(reader)


def test_a_page_with_some_dumps_says_so(tmp_path: Path) -> None:
    (tmp_path / "nccl_trace_rank_1").write_bytes(content_of(["all_reduce"]))
    (line,) = page_lines(tmp_path, 2)
    assert line.startswith("last collectives of rank 1: ") and line.endswith(" --allow-incomplete-ranks")

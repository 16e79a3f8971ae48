"""The file in which a rank reports its error is written whole, even by a rank that is killed meanwhile."""

import json
import os
import signal
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.launch.error_file import record_error


def test_the_agent_reads_class_text_and_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    try:
        raise UserError("data.path: no such folder", "name one")
    except UserError as error:
        record_error(error)
    message = json.loads(file.read_text())["message"]
    assert message["message"] == "UserError: data.path: no such folder\nname one"
    assert "test_error_file.py" in message["extraInfo"]["py_callstack"]
    assert list(tmp_path.iterdir()) == [file]


def test_a_rank_killed_while_it_writes_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))

    def killed(data: object, stream: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        json.dump = killed
        record_error(ValueError("never read"))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    # With torch's own handler the empty file stands here, and the agent fails on it.
    assert not file.exists()

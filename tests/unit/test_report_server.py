"""The live server of reports: who is served what."""

import json
import math
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from browser.run_directories import append_line, metrics_line, write_run

from trainer.cli import main
from trainer.verbs.report.live import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    root = tmp_path / "outputs"
    write_run(root / "cnn" / "first")
    write_run(root / "cnn" / "damaged", config={"note": "x"})
    (root / "cnn" / "damaged" / "run.json").write_text("{")
    write_run(tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    with Server(root, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(server: Server, target: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """The request line exactly as given, which urllib would clean up. Returns: status, text, ETag."""
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, target, headers=headers)
    answer = connection.getresponse()
    text, tag = answer.read().decode(), answer.getheader("ETag") or ""
    connection.close()
    return answer.status, text, tag


def test_only_this_machine_is_served(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert request(server, "/api/runs", Host=host)[0] == 200
    for host in ("attacker.example", f"attacker.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.attacker.example"):
        status, text, _ = request(server, "/api/runs", Host=host)
        assert (status, text) == (403, "wrong host")
    assert request(server, "/api/runs", method="POST")[0] == 501


@pytest.mark.parametrize(
    "target",
    [
        "/../outside/run.json",
        "/cnn/first/run.json",
        "/report?run=../outside",
        "/report?run=link",
        "/report?run=/etc",
        "/report?run=cnn/first/../first",
        "/report?run=cnn/first&run=%2e%2e/outside",
        "/api/points?run=..%2Foutside",
        "/report?run=",
        "/report",
        "/assets/report.js",
    ],
)
def test_nothing_but_the_runs_below_the_root_is_served(target: str, server: Server) -> None:
    status, text, _ = request(server, target)
    assert status == 404
    assert "attempts" not in text


def test_the_rows_of_the_table(server: Server) -> None:
    status, text, tag = request(server, "/api/runs")
    damaged, first = json.loads(text)
    assert (status, first["run"], first["step"], first["status"]) == (200, "cnn/first", 100, "finished")
    assert (damaged["run"], damaged["status"]) == ("cnn/damaged", "damaged")
    assert request(server, "/api/runs", **{"If-None-Match": tag})[:2] == (304, "")
    assert request(server, "/report?run=cnn/damaged")[0] == 422


def test_points_are_sent_as_soon_as_they_are_written(server: Server) -> None:
    target = "/api/points?run=cnn/first"
    _, text, tag = request(server, target)
    assert request(server, target, **{"If-None-Match": tag})[:2] == (304, "")
    append_line(server.runs.root / "cnn" / "first", **metrics_line(101))
    status, later, _ = request(server, target, **{"If-None-Match": tag})
    before, after = json.loads(text), json.loads(later)
    assert (status, before["last_step"], after["last_step"]) == (200, 100, 101)
    assert before["signature"] == after["signature"]
    assert after["charts"][0][0]["y"][-1] == pytest.approx(metrics_line(101)["train/loss"], rel=1e-6)
    append_line(server.runs.root / "cnn" / "first", step=101, **{"train/loss": math.nan, "test/new": 1.0})
    assert json.loads(request(server, target)[1])["signature"] != before["signature"]


def test_a_port_that_is_taken_is_refused(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--serve", f"root={server.runs.root}", f"port={server.server_port}"]) == 2
    assert f"port={server.server_port}: " in capsys.readouterr().err

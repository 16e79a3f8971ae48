"""Whether a server can be reached, directly or through a proxy."""

import socket

import pytest

from trainer.network import route_problem


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_server_that_listens_has_a_route_and_a_closed_port_has_none(no_proxy: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert route_problem(f"http://127.0.0.1:{server.getsockname()[1]}/api") is None
    assert "refused" in str(route_problem(f"http://{unused_address()}"))
    assert "ort" in str(route_problem("http://127.0.0.1:port"))
    assert route_problem("https://") is not None


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_is_the_route(variable: str, no_proxy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"https://{unused_address()}"
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv(variable, f"127.0.0.1:{proxy.getsockname()[1]}")
        assert route_problem(url) is None
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert "refused" in str(route_problem(url))
    monkeypatch.delenv("NO_PROXY")
    assert "refused" in str(route_problem("https://example.invalid"))

import threading
from pathlib import Path

import pytest

from trainer.data.cache import build_once, cache_key, cache_root


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path))
    return tmp_path


def test_one_builds_while_the_others_wait():
    builds, found = [], []
    entered, go_on = threading.Event(), threading.Event()

    def build(folder: Path) -> None:
        builds.append(folder)
        entered.set()
        assert go_on.wait(20)
        (folder / "result").write_text("whole")

    def use() -> None:
        found.append((build_once("kind", "key", build) / "result").read_text())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(20)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert found == ["whole"] * 4
    assert len(builds) == 1


def test_a_failed_build_leaves_nothing(root):
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        build_once("kind", "key", build)
    assert [path for path in (root / "kind").iterdir() if path.is_dir()] == []
    assert build_once("kind", "key", lambda folder: None).is_dir()


def test_keys_follow_from_their_parts(root):
    assert cache_key("a", 1) == cache_key("a", 1)
    assert len({cache_key("a", 1), cache_key("a", 2), cache_key("a1"), cache_key("a", "1", "")}) == 4
    assert cache_root() == root

import os
import shutil
import threading
from pathlib import Path

import pytest

from trainer.data.cache import build_once, cache_key, cache_root
from trainer.errors import UserError


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


def test_a_cache_is_private(root):
    build_once("kind", "key", lambda folder: None)
    assert [folder.stat().st_mode & 0o777 for folder in (root, root / "kind", root / "kind" / "key")] == [0o700] * 3


@pytest.mark.parametrize("which", ["", "kind"])
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_cache_that_others_can_write_to_is_refused(which, mode, root):
    (root / "kind").mkdir(parents=True)
    (root / which).chmod(mode)
    with pytest.raises(UserError, match="can be written by all users"):
        build_once("kind", "key", lambda folder: None)
    (root / which).chmod(0o755)
    build_once("kind", "key", lambda folder: None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_what_another_user_has_put_there_is_not_read(root):
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "file").write_text("ours")

    folder = root / "kind" / "key"
    folder.mkdir(parents=True)
    (folder / "file").write_text("theirs")
    os.chown(folder, 65534, 65534)
    assert (build_once("kind", "key", build) / "file").read_text() == "ours"
    shutil.move(folder, root / "elsewhere")
    folder.symlink_to(root / "elsewhere")
    assert not (build_once("kind", "key", build)).is_symlink()
    assert len(built) == 2
    os.chown(root, 65534, 65534)
    with pytest.raises(UserError, match="belongs to the user 65534"):
        build_once("kind", "key", build)

"""Caches that another user has made, can write to, or has written to: refused, or built again.

Another user is one of the operating system, so most cases need root.
"""

import grp
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.cli import main
from trainer.config.compose import compose_mapping, typed
from trainer.data import cache as caches
from trainer.data.cache import build_once, foreign_access, use_private_compiler_cache
from trainer.data.images.cache import image_cache
from trainer.errors import UserError
from trainer.verbs.doctor.storage import check_cache
from trainer.world import World

NOBODY = 65534
SHAPE = (2, 1, 4, 4)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def use(root: Path) -> str:
    """What a run reads from the cache, which it builds first where it has to."""

    def build(folder: Path) -> None:
        (folder / "file").write_text("ours")
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("ours")

    folder = build_once("kind", "key", build)
    return (folder / "file").read_text() + (folder / "deep" / "file").read_text()


def write_as_nobody(file: Path, text: str) -> None:
    """In a process of another user, who was let in once."""
    become = f"os.setgroups([])\nos.setgid({NOBODY})\nos.setuid({NOBODY})"
    script = f"import os\n{become}\nopen({str(file)!r}, 'w').write({text!r})\n"
    subprocess.run([sys.executable, "-S", "-c", script], check=True, timeout=60, cwd="/")


def open_to_all(root: Path, mode: int) -> None:
    for path in (*root.parents, root, *root.rglob("*")):
        if path.is_relative_to(root):
            path.chmod(mode)
        elif path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o001)


def folder_is_theirs(entry: Path) -> None:
    os.chown(entry, NOBODY, NOBODY)


def file_is_theirs(entry: Path) -> None:
    (entry / "deep" / "file").write_text("theirs")
    os.chown(entry / "deep" / "file", NOBODY, NOBODY)


def folder_is_open_to_a_group(entry: Path) -> None:
    (entry / "file").write_text("theirs")
    os.chown(entry / "deep", -1, NOBODY)
    (entry / "deep").chmod(0o770)


def file_is_open_to_all(entry: Path) -> None:
    (entry / "file").write_text("theirs")
    (entry / "file").chmod(0o666)


def file_is_a_link(entry: Path) -> None:
    (entry / "file").unlink()
    elsewhere = entry.parent / "elsewhere"
    elsewhere.write_text("theirs")
    (entry / "file").symlink_to(elsewhere)


def content_has_another_size(entry: Path) -> None:
    (entry / "file").write_text("poison")


def content_has_another_byte(entry: Path) -> None:
    """With the size and the time that it had."""
    file = entry / "file"
    before = file.stat()
    file.write_text("your")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def there_is_another_file(entry: Path) -> None:
    (entry / "added").write_text("theirs")


def there_is_a_file_less(entry: Path) -> None:
    (entry / "deep" / "file").unlink()


def nothing_says_what_was_built(entry: Path) -> None:
    (entry / "file").write_text("poison")
    (entry / caches.BUILT_FILE).unlink()


def what_was_built_is_no_table(entry: Path) -> None:
    (entry / "file").write_text("poison")
    (entry / caches.BUILT_FILE).write_text('["file"]')


@as_root
@pytest.mark.parametrize(
    "poison",
    [
        folder_is_theirs, file_is_theirs, folder_is_open_to_a_group, file_is_open_to_all, file_is_a_link,
        content_has_another_size, content_has_another_byte, there_is_another_file, there_is_a_file_less,
        nothing_says_what_was_built, what_was_built_is_no_table,
    ],
)  # fmt: skip
def test_a_poisoned_result_is_built_again(poison: Callable[[Path], None], root: Path) -> None:
    assert use(root) == "oursours"
    poison(root / "kind" / "key")
    assert use(root) == "oursours"
    assert not (root / "kind" / "key" / "added").exists()
    assert foreign_access(root / "kind" / "key") is None


@as_root
def test_another_user_can_not_get_at_a_cache_and_once_let_in_poisons_nothing(root: Path) -> None:
    use(root)
    file = root / "kind" / "key" / "file"
    with pytest.raises(subprocess.CalledProcessError):
        write_as_nobody(file, "poison")
    open_to_all(root, 0o777)
    write_as_nobody(file, "poison")
    with pytest.raises(UserError, match="can be written by all users"):
        use(root)
    open_to_all(root, 0o700)
    assert use(root) == "oursours"


def test_what_nobody_has_written_to_is_neither_built_nor_hashed_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controls; a copy of a cache is hashed, once, and taken."""
    use(root)
    hashed: list[Path] = []
    hashes = caches._hashes
    monkeypatch.setattr(caches, "_hashes", lambda folder: hashed.append(folder) or hashes(folder))

    def must_not_build(folder: Path) -> None:
        raise AssertionError("built again")

    entry = build_once("kind", "key", must_not_build)
    assert hashed == []
    os.utime(entry / "file", ns=(1, 1))
    build_once("kind", "key", must_not_build)
    assert hashed != []
    hashed.clear()
    build_once("kind", "key", must_not_build)
    assert hashed == []


@as_root
@pytest.mark.parametrize("which", ["", "kind"])
def test_a_cache_of_another_user_or_group_is_refused(which: str, root: Path) -> None:
    use(root)
    os.chown(root / which, NOBODY, NOBODY)
    with pytest.raises(UserError, match="belongs to the user 65534"):
        use(root)
    os.chown(root / which, 0, NOBODY)
    assert use(root) == "oursours"
    (root / which).chmod(0o770)
    with pytest.raises(UserError, match="can be written by the group 65534"):
        use(root)
    (root / which).chmod(0o700)
    assert use(root) == "oursours"


@as_root
def test_a_link_of_another_user_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "own")
    assert use(root) == "oursours"
    os.chown(root, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(UserError, match="belongs to the user 65534"):
        use(root)


def test_the_group_of_a_user_alone_is_trusted_and_one_with_members_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o770)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid)
    monkeypatch.setattr(caches.pwd, "getpwuid", lambda uid: caches.pwd.struct_passwd(["me", "", uid, 7, "", "", ""]))
    for name, members, trusted in (("me", [], True), ("me", ["me"], True), ("me", ["other"], False), ("us", [], False)):
        group = grp.struct_group([name, "", 7, members])
        monkeypatch.setattr(caches.grp, "getgrgid", lambda gid, group=group: group)
        assert caches._is_own_group(7) == trusted, (name, members)


@as_root
def test_poisoned_pixels_are_decoded_again(root: Path) -> None:
    def fill(pixels: np.ndarray) -> dict[int, str]:
        pixels[:] = 7
        return {}

    folder = image_cache({"rows": "a"}, SHAPE, fill).folder
    content = bytearray((folder / "pixels.npy").read_bytes())
    content[-1] = 255
    (folder / "pixels.npy").write_bytes(content)
    assert int(image_cache({"rows": "a"}, SHAPE, fill).pixels.max()) == 7


@as_root
def test_a_run_on_a_foreign_cache_ends_and_doctor_says_why(
    root: Path, in_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(16):
        path = in_directory / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    words = [
        "task=cnn",
        "data=image_folder",
        "data.path=images",
        "data.image_size=16",
        "logger=none",
        "run.report=false",
    ]
    words += ["trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.enable_progress_bar=false"]
    root.mkdir(mode=0o700)
    os.chown(root, NOBODY, NOBODY)
    assert main(words) == 2
    assert "belongs to the user 65534" in capsys.readouterr().err
    config, _ = typed(compose_mapping(words))
    (finding,) = check_cache(config, World("single", "cpu", 1, 1, 1))
    assert finding.status == "failure" and "belongs to the user 65534" in finding.found


@as_root
def test_code_of_the_compiler_is_kept_where_nobody_else_writes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As importing parts of torch sets it.
    monkeypatch.setenv(caches.COMPILER_CACHE, f"{tempfile.gettempdir()}/torchinductor_me")
    use_private_compiler_cache()
    assert os.environ[caches.COMPILER_CACHE] == str(root / "compiled")
    assert (root / "compiled").stat().st_mode & 0o777 == 0o700
    # The user's own choice stays.
    os.environ[caches.COMPILER_CACHE] = "/elsewhere"
    use_private_compiler_cache()
    assert os.environ[caches.COMPILER_CACHE] == "/elsewhere"
    monkeypatch.delenv(caches.COMPILER_CACHE)
    os.chown(root / "compiled", NOBODY, NOBODY)
    with pytest.raises(UserError, match="belongs to the user 65534"):
        use_private_compiler_cache()
    assert caches.COMPILER_CACHE not in os.environ

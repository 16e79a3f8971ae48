"""Which revisions of the hub conf/ names, and what a run says about one that is not pinned."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from datasets import Dataset
from omegaconf import OmegaConf

from trainer.config.compose import compose_mapping, typed
from trainer.config.identity import identity_hash
from trainer.data.sources import Source, hub_commit, pinning_note

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Sets of which no commit could be verified; conf/ says why.
UNPINNED = {"financial_phrasebank"}


def named(group: str, key: str) -> list[str]:
    """Members of a group whose file names something on the hub."""
    files = sorted((REPOSITORY / "conf" / group).glob("*.yaml"))
    values: Any = {file.stem: OmegaConf.to_container(OmegaConf.load(file), resolve=False) for file in files}
    return [name for name, each in values.items() if re.fullmatch(r"[\w-]+/[\w.-]+", str(each.get(key)))]


def composed(*words: str) -> Any:
    return typed(compose_mapping(words))[0]


def test_what_conf_names_on_the_hub_is_pinned_to_a_commit() -> None:
    sets, models = named("data", "hub_id"), named("model", "path")
    assert len(sets) == 10 and len(models) == 3
    for name in models:
        model = composed("task=bert", f"model={name}").model
        assert re.fullmatch(r"[0-9a-f]{40}", str(model.revision)), name
    for name in sets:
        task = "cnn" if name in ("cifar10", "cifar100", "mnist", "fashion_mnist") else "bert"
        data = composed(f"task={task}", f"data={name}").data
        assert (data.revision is None) == (name in UNPINNED), name
        assert data.revision is None or re.fullmatch(r"[0-9a-f]{40}", data.revision)
        text = (REPOSITORY / "conf" / "data" / f"{name}.yaml").read_text()
        assert "sha256: null # " in text and ("revision: null # " in text) == (name in UNPINNED)


def test_a_pin_is_of_what_conf_names_and_of_nothing_else(tmp_path: Path) -> None:
    words = ["task=bert", "model=bert_base", "data=sst2"]
    config = composed(*words)
    own = composed(*words, f"model.path={tmp_path}", f"data.path={tmp_path}")
    assert None not in (config.model.revision, config.model.sha256, config.data.revision)
    assert (own.model.revision, own.model.sha256, own.data.revision) == (None, None, None)
    chosen = composed(*words, f"data.revision={COMMIT}", "model.revision=main")
    assert (chosen.data.revision, chosen.model.revision) == (COMMIT, "main")


def test_a_local_copy_of_a_named_set_is_the_same_experiment(tmp_path: Path) -> None:
    words = ["task=cnn", "data=cifar10"]
    hashes = {identity_hash(composed(*words, *more)) for more in ([], [f"data.path={tmp_path}"])}
    assert len(hashes) == 1


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_set_of_the_hub_tells_its_commit(revision: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "owner___name" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.rename(folder / "name-train.arrow")
    splits = {"train": Dataset.from_file(str(folder / "name-train.arrow"))}
    source = Source("owner/name", None, None, revision=revision)
    assert hub_commit(splits, source) == COMMIT
    note = pinning_note(source, COMMIT)
    assert note is None if revision == COMMIT else f"data.revision={COMMIT}" in str(note)
    assert hub_commit(splits, Source("owner/name", None, str(tmp_path))) is None
    assert pinning_note(source, None) is None

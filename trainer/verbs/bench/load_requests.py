"""What `bench serve` sends: probes of a run, or what a file holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen
from uuid import uuid4

from trainer.bench.load import Request
from trainer.errors import UserError
from trainer.export.probes import PROBES_FILE
from trainer.run.files import EXPORT_DIR

NUM_SEEDS = 20
ANSWER_S = 10.0


def described(url: str, key: str | None) -> Mapping[str, Any]:
    """What a server says of its model at /model. Raises: UserError: it cannot be reached, or is another server."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if not url.startswith(("http://", "https://")):
        raise UserError(f"url={url}: of the form http://HOST:PORT")
    try:
        with urlopen(HttpRequest(f"{url}/model", headers=headers), timeout=ANSWER_S) as response:
            model = json.load(response)
    except HTTPError as error:
        raise UserError(f"url={url}: GET /model answers {error.code}") from error
    except (URLError, OSError, ValueError) as error:
        raise UserError(f"url={url}: no server of this package answers at /model ({error})") from error
    if not isinstance(model, dict) or not {"task", "kind", "format"} <= model.keys():
        raise UserError(f"url={url}: what answers at /model is no server of this package")
    return model


def requests_of(model: Mapping[str, Any], inputs: str, run: str) -> list[Request]:
    """Requests for a model. Args: inputs: a file or a folder, or empty. run: a directory, or empty.

    Raises: UserError: the inputs cannot be read, or there are none.
    """
    if inputs:
        return _of_path(Path(inputs))
    if model["kind"] == "noise":
        return [_json({"n": 1, "seed": seed}) for seed in range(NUM_SEEDS)]
    if not run:
        raise UserError("bench serve: needs inputs=PATH, or run=DIR of the run that is served, whose probes are sent")
    file = Path(run) / EXPORT_DIR / str(model["format"]) / PROBES_FILE
    try:
        return [_json(body) for body in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read; export the run again") from error


def _of_path(path: Path) -> list[Request]:
    """Lines of a .jsonl file, an image, or a folder of images."""
    try:
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            found = [_json(json.loads(line)) for line in lines if line.strip()]
        else:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            found = [_image(file.read_bytes()) for file in files if file.is_file()]
    except (OSError, ValueError) as error:
        raise UserError(f"inputs={path}: cannot be read ({error})") from error
    if not found:
        raise UserError(f"inputs={path}: empty; a .jsonl file of request bodies, an image, or a folder of images")
    return found


def _json(body: Any) -> Request:
    return Request(json.dumps(body).encode(), "application/json")


def _image(content: bytes) -> Request:
    boundary = uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
    body = b"".join([head.encode(), content, f"\r\n--{boundary}--\r\n".encode()])
    return Request(body, f"multipart/form-data; boundary={boundary}")

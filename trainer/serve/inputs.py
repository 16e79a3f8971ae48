"""From the body of a request to prepared inputs, within the limits."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from PIL import Image
from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from trainer.data.images.decode import FORMATS
from trainer.errors import UserError
from trainer.export.processing import ImageInputs, NoiseInputs, TextInputs
from trainer.serve.batcher import Item
from trainer.serve.config import Limits
from trainer.serve.model import ServedModel
from trainer.serve.problems import RequestProblem

FIELD = "image"  # of a multipart body


async def multipart_files(headers: Headers, body: bytes, max_files: int) -> list[bytes]:
    """The files of a multipart body. Raises: RequestProblem: it is not one, or has other fields."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=max_files, max_fields=0)
    parser.spool_max_size = len(body) + 1  # in memory: a server may have no directory that it can write to
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, ValueError, LookupError) as error:
        reason = error.message if isinstance(error, MultiPartException) else "it is damaged"
        raise RequestProblem(400, f"the multipart body cannot be read: {reason}") from error
    files: list[bytes] = []
    for name, value in form.multi_items():
        if name != FIELD or not isinstance(value, UploadFile):
            raise RequestProblem(422, f"a multipart body has files in the field {FIELD} and nothing else")
        files.append(await value.read())
    if not files:
        raise RequestProblem(422, f"the multipart body has no complete file in the field {FIELD}")
    return files


def parse_json(body: bytes) -> Any:
    """A JSON text by RFC 8259. Raises: RequestProblem: it is none."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise RequestProblem(400, f"the body is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise RequestProblem(400, "the body is not usable JSON: it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise RequestProblem(400, f"the body is not JSON: {error.msg} at character {error.pos}") from error
    except ValueError as error:
        raise RequestProblem(400, f"the body is not JSON: {str(error)[:120]}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member of an object is given twice")
    return members


def json_inputs(model: ServedModel, value: Any, limits: Limits) -> list[Any]:
    """Raw inputs of a JSON body. Raises: RequestProblem: it has another form, or exceeds a limit."""
    kind = model.exported.processing.inputs
    if not isinstance(value, dict):
        raise RequestProblem(422, f"the body is a JSON object, not {type(value).__name__}")
    if isinstance(kind, NoiseInputs) and "inputs" not in value:
        return kind.points(*_count_and_seed(value, limits))
    if "inputs" not in value:
        given = [value]
    elif value.keys() != {"inputs"} or not isinstance(value["inputs"], list):
        raise RequestProblem(422, "inputs is a list, and stands alone")
    else:
        given = value["inputs"]
    _check_count(len(given), limits)
    inputs = []
    for number, each in enumerate(given):
        try:
            inputs.append(kind.from_json(each))
        except UserError as error:
            raise RequestProblem(422, f"input {number}: {'; '.join(error.lines)}") from error
    return inputs


def _count_and_seed(value: dict[str, Any], limits: Limits) -> tuple[int, int]:
    unknown = sorted(value.keys() - {"n", "seed"})
    if unknown or "n" not in value:
        raise RequestProblem(422, 'the body is {"n": ..., "seed": ...} or {"inputs": [...]}')
    count, seed = value["n"], value.get("seed", 0)
    if type(count) is not int or count < 1:
        raise RequestProblem(422, "n is an integer from 1 on")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise RequestProblem(422, "seed is an integer from 0 to 2^32 - 1")
    _check_count(count, limits)
    return count, seed


def _check_count(count: int, limits: Limits) -> None:
    if count == 0:
        raise RequestProblem(422, "there are no inputs")
    if count > limits.max_inputs:
        raise RequestProblem(413, f"{count} inputs in one request; at most {limits.max_inputs}")


def prepare(model: ServedModel, inputs: Sequence[Any], limits: Limits) -> list[Item]:
    """Items for the queue. Raises: RequestProblem: an input cannot be used, or exceeds a limit."""
    kind = model.exported.processing.inputs
    for number, value in enumerate(inputs):
        if isinstance(kind, TextInputs) and sum(map(len, value)) > limits.max_characters:
            raise RequestProblem(413, f"input {number}: has more than {limits.max_characters} characters")
        if isinstance(kind, ImageInputs):
            _check_pixels(number, value, limits.max_pixels)
    try:
        prepared = kind.prepared(inputs)
    except UserError as error:
        raise RequestProblem(422, "; ".join(error.lines)) from error
    except Exception as error:
        if not isinstance(kind, ImageInputs):
            raise
        # Pillow's decoders raise more than they document on bytes that are made to break them.
        raise RequestProblem(422, f"an image cannot be decoded ({type(error).__name__})") from error
    return [Item(model, each, kind.length(each)) for each in prepared]


def _check_pixels(number: int, encoded: bytes, most: int) -> None:
    """The size that the header names, before anything is decoded."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise RequestProblem(413, f"input {number}: has far more pixels than {most}, which is the most") from error
    except Exception as error:  # as above
        raise RequestProblem(422, f"input {number}: not an image in {', '.join(FORMATS)}") from error
    if width * height > most:
        raise RequestProblem(413, f"input {number}: has {width}x{height} pixels; at most {most}")

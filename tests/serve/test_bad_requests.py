"""Requests that a server refuses with a reason, and after each of which it answers as before."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from servers import Answer, RunningServer, multipart, read_all, serving

# The first test of a module trains and exports, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(1200)

MANY = "word " * 5000
GOOD_TEXT = {"text": "the film was bright"}
HEAD = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def texts(text_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("log") / "texts"
    with serving(text_export, "head_s=0.5", "body_s=0.5", "max_body_mib=1", "max_inputs=8", log=log) as server:
        yield server
    assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def images(image_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("log") / "images"
    limits = ["max_body_mib=1", "max_inputs=4", "max_pixels=1000000"]
    with serving(image_export, *limits, log=log) as server:
        yield server
    assert "Traceback" not in server.log


@pytest.fixture(autouse=True)
def lives_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a request, a good one is answered as it was at first."""
    yield
    if "texts" in request.fixturenames:
        server: RunningServer = request.getfixturevalue("texts")
        answer = server.predict(GOOD_TEXT)
    elif "images" in request.fixturenames:
        server = request.getfixturevalue("images")
        answer = post_files(server, [png(np.zeros((32, 32), np.uint8))])
    else:
        return
    assert answer.status == 200, answer.body
    first = vars(server).setdefault("first", answer.json["results"])
    assert answer.json["results"] == first


def post(server: RunningServer, body: bytes | str, content_type: str = "application/json") -> Answer:
    return server.ask("POST", "/predict", body, Content_Type=content_type)


def post_files(server: RunningServer, files: list[bytes], field: str = "image") -> Answer:
    body, content_type = multipart(files, field)
    return post(server, body, content_type)


# Bodies that are no JSON, or not JSON as it is exchanged.
NO_JSON = {
    "empty": b"",
    "spaces": b"   ",
    "words": b"text=hello",
    "cut": b'{"text": "hel',
    "no end": b'{"text": "hello"',
    "more after the end": b'{"text": "a"} {"text": "b"}',
    "comma at the end": b'{"text": "a",}',
    "single quotes": b"{'text': 'a'}",
    "comment": b'{"text": "a" /* b */}',
    "not a number": b'{"text": NaN}',
    "infinity": b'{"inputs": [Infinity]}',
    "minus infinity": b'{"n": -Infinity}',
    "latin-1": '{"text": "caf\xe9"}'.encode("latin-1"),
    "utf-16": '{"text": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"text": "a"}',
    "overlong utf-8": b'{"text": "\xc0\xaf"}',
    "surrogate in utf-8": b'{"text": "\xed\xa0\x80"}',
    "control character": b'{"text": "a\x00b"}',
    "wrong escape": b'{"text": "\\x41"}',
    "half an escape": b'{"text": "\\u12"}',
    "a member twice": b'{"text": "a", "text": "b"}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"text":' * 50_000,
    "deep and closed": b'{"inputs":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "a number of a million digits": b'{"n": ' + b"9" * 900_000 + b"}",
    "binary": bytes(range(256)),
    "gzip": bytes.fromhex("1f8b0800000000000003ab5628492d2e0100"),
}


@pytest.mark.parametrize("name", NO_JSON)
def test_no_json(texts: RunningServer, name: str) -> None:
    answer = post(texts, NO_JSON[name])
    assert answer.status == 400, answer.body
    assert "the body" in answer.error


# JSON that is no input of the model: (value, status, part of the reason).
NO_INPUT: dict[str, tuple[object, int, str]] = {
    "null": (None, 422, "object"),
    "a number": (1, 422, "object"),
    "a string": ("hello", 422, "object"),
    "a list": ([GOOD_TEXT], 422, "object"),
    "nothing": ({}, 422, "text is missing"),
    "another member": ({"txt": "a"}, 422, "text is missing"),
    "a member too many": ({"text": "a", "label": "good"}, 422, "label is not known"),
    "a pair for one text": ({"text": "a", "text_pair": "b"}, 422, "text_pair is not known"),
    "text null": ({"text": None}, 422, "no text"),
    "text a number": ({"text": 3}, 422, "type int"),
    "text true": ({"text": True}, 422, "type bool"),
    "text a list": ({"text": ["a"]}, 422, "type list"),
    "text an object": ({"text": {"text": "a"}}, 422, "type dict"),
    "text empty": ({"text": ""}, 422, "empty"),
    "text of spaces": ({"text": " \n\t\u2003"}, 422, "empty"),
    "half a surrogate pair": ({"text": "a\ud800"}, 422, "surrogate"),
    "too many characters": ({"text": MANY}, 413, "more than 20000 characters"),
    "inputs null": ({"inputs": None}, 422, "inputs is a list"),
    "inputs an object": ({"inputs": {"text": "a"}}, 422, "inputs is a list"),
    "inputs a text": ({"inputs": "a"}, 422, "inputs is a list"),
    "inputs beside text": ({"inputs": ["a"], "text": "b"}, 422, "alone"),
    "no inputs": ({"inputs": []}, 422, "no inputs"),
    "too many inputs": ({"inputs": ["a"] * 9}, 413, "at most 8"),
    "one input wrong": ({"inputs": ["a", "b", 3]}, 422, "input 2"),
    "one input empty": ({"inputs": ["a", {"text": ""}]}, 422, "input 1"),
    "inputs in inputs": ({"inputs": [{"inputs": ["a"]}]}, 422, "input 0"),
    "noise for a text model": ({"n": 4, "seed": 1}, 422, "text is missing"),
    "an image for a text model": ({"image": "aGk="}, 422, "text is missing"),
    "an address": ({"url": "http://127.0.0.1/a.png"}, 422, "text is missing"),
}


@pytest.mark.parametrize("name", NO_INPUT)
def test_no_input(texts: RunningServer, name: str) -> None:
    value, status, reason = NO_INPUT[name]
    answer = texts.predict(value)
    assert answer.status == status, answer.body
    assert reason in answer.error


def png(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)  # pyright: ignore[reportArgumentType]
    return stream.getvalue()


def png_of_zeros(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header names any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


GOOD = png(np.arange(1024, dtype=np.uint8).reshape(32, 32))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(id) print\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"/>'
# Files that are no image: (content, status, part of the reason).
NO_IMAGE: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 422, "not an image"),
    "text": (b"hello", 422, "not an image"),
    "html": (b"<html></html>", 422, "not an image"),
    "svg": (SVG, 422, "not an image"),
    "postscript": (EPS, 422, "not an image"),
    "pdf": (b"%PDF-1.4\n", 422, "not an image"),
    "zip": (b"PK\x03\x04" + bytes(100), 422, "not an image"),
    "signature alone": (GOOD[:8], 422, "not an image"),
    "cut in the header": (GOOD[:20], 422, "not an image"),
    "cut in the pixels": (GOOD[:70], 422, "input 0"),
    "wrong checksum": (GOOD[:50] + b"\xff\xff" + GOOD[52:], 422, "input 0"),
    "no pixels": (png_of_zeros(32, 32), 422, "input 0"),
    "no width": (png_of_zeros(0, 32), 422, ""),
    "a bomb": (png_of_zeros(30_000, 30_000, bytes(2**20)), 413, "pixels"),
    "a bomb with pixels": (png(np.zeros((4000, 4000), np.uint8)), 413, "4000x4000"),
    "a size that no memory has": (png_of_zeros(2**31 - 1, 2**31 - 1), 413, "pixels"),
    "colour": (png(np.zeros((32, 32, 3), np.uint8)), 422, "3 channels"),
    "jpeg cut": (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", 422, "not an image"),
    "gif cut": (b"GIF89a\x20\x00\x20\x00\x80\x00\x00", 422, "input 0"),
    "tiff that points nowhere": (b"II*\x00\xff\xff\xff\x7f", 422, "not an image"),
    "bmp with a wrong offset": (b"BM" + bytes(60), 422, "not an image"),
    "a ppm of letters": (b"P2\n32 32\n255\nabc def", 422, "input 0"),
}


@pytest.mark.parametrize("name", NO_IMAGE)
def test_no_image(images: RunningServer, name: str) -> None:
    content, status, reason = NO_IMAGE[name]
    for answer in (post_files(images, [content]), images.predict({"image": base64.b64encode(content).decode()})):
        assert answer.status == status, answer.body
        assert reason in answer.error


FORM = multipart([GOOD])
SHORT_FORM = "multipart/form-data; boundary=b"
NO_FORM: dict[str, tuple[bytes, str, int]] = {
    "no boundary": (FORM[0], "multipart/form-data", 400),
    "another boundary": (FORM[0], "multipart/form-data; boundary=other", 400),
    "a boundary of nothing": (FORM[0], "multipart/form-data; boundary=", 400),
    "no end": (FORM[0][:-14], FORM[1], 422),
    "cut in the headers": (FORM[0][:40], FORM[1], 422),
    "empty": (b"", FORM[1], 422),
    "another field": (*multipart([GOOD], field="file"), 422),
    "no file": (b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nhi\r\n--b--\r\n', SHORT_FORM, 400),
    "no name": (b"--b\r\nContent-Disposition: form-data\r\n\r\nhi\r\n--b--\r\n", SHORT_FORM, 400),
    "no headers": (b"--b\r\n\r\nhi\r\n--b--\r\n", SHORT_FORM, 400),
    "too many files": (*multipart([GOOD] * 5), 400),
    "one file of several wrong": (*multipart([GOOD, b"hello"]), 422),
    "too large": (*multipart([bytes(2**20 + 1)]), 413),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_FORM)
def test_no_form(images: RunningServer, name: str) -> None:
    body, content_type, status = NO_FORM[name]
    answer = post(images, body, content_type)
    assert answer.status == status, answer.body
    assert answer.error


ROUTES = {
    "no such route": ("GET", "/nothing", {}, 404),
    "a file of the machine": ("GET", "/../../etc/passwd", {}, 404),
    "the same encoded": ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404),
    "a route of FastAPI": ("GET", "/redoc", {}, 404),
    "a slash too many": ("POST", "/predict/x", {}, 404),
    "GET": ("GET", "/predict", {}, 405),
    "PUT": ("PUT", "/predict", {}, 405),
    "DELETE": ("DELETE", "/model", {}, 405),
    "a method of its own": ("BREW", "/predict", {}, 400),
    "no content type": ("POST", "/predict", {}, 415),
    "plain text": ("POST", "/predict", {"Content_Type": "text/plain"}, 415),
    "a form of addresses": ("POST", "/predict", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
    "files for a text model": ("POST", "/predict", {"Content_Type": FORM[1]}, 415),
    "another site's name": ("GET", "/model", {"Host": "attacker.example"}, 421),
    "another site's name with the port": ("GET", "/model", {"Host": "attacker.example:80"}, 421),
    "a name that begins as ours": ("GET", "/model", {"Host": "localhost.attacker.example"}, 421),
}


@pytest.mark.parametrize("name", ROUTES)
def test_routes(texts: RunningServer, name: str) -> None:
    method, path, headers, status = ROUTES[name]
    answer = texts.ask(method, path, b"{}" if method == "POST" else None, **headers)
    assert answer.status == status, answer.body
    assert answer.error


BODY = json.dumps(GOOD_TEXT)
LENGTH = f"Content-Length: {len(BODY)}\r\n"
# What a proxy and a server could read differently. The connection is closed, with 400 where there is an answer.
SMUGGLED = {
    "length and chunks": f"{HEAD}{LENGTH}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": f"{HEAD}Transfer-Encoding: chunked\r\n{LENGTH}\r\n0\r\n\r\n",
    "two lengths": f"{HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{BODY}",
    "two lengths in one": f"{HEAD}Content-Length: 5, 6\r\n\r\n{BODY}",
    "a negative length": f"{HEAD}Content-Length: -5\r\n\r\n{BODY}",
    "a length with a sign": f"{HEAD}Content-Length: +5\r\n\r\n{BODY}",
    "a length in hexadecimal": f"{HEAD}Content-Length: 0x5\r\n\r\n{BODY}",
    "a length of many digits": f"{HEAD}Content-Length: {'9' * 30}\r\n\r\n{BODY}",
    "an encoding of its own": f"{HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "two encodings": f"{HEAD}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "an encoding with a tab": f"{HEAD}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": f"{HEAD}Content-Length : 5\r\n\r\n{BODY}",
    "a folded line": f"{HEAD}X-A: b\r\n c\r\n{LENGTH}\r\n{BODY}",
    "a line folded by a tab": f"{HEAD}X-A: b\r\n\tTransfer-Encoding: chunked\r\n{LENGTH}\r\n{BODY}",
    "bare line feeds": f"{HEAD}{LENGTH}\r\n{BODY}".replace("\r\n", "\n"),
    "one bare line feed": f"{HEAD}X-A: b\nX-B: c\r\n{LENGTH}\r\n{BODY}",
    "a bare carriage return": f"{HEAD}X-A: b\rX-B: c\r\n{LENGTH}\r\n{BODY}",
    "a zero byte": f"{HEAD}X-A: b\x00c\r\n{LENGTH}\r\n{BODY}",
    "a name with a space": f"{HEAD}X A: b\r\n{LENGTH}\r\n{BODY}",
    "no name": f"{HEAD}: b\r\n{LENGTH}\r\n{BODY}",
    "no colon": f"{HEAD}nothing\r\n{LENGTH}\r\n{BODY}",
    "no host": f"POST /predict HTTP/1.1\r\n{LENGTH}\r\n{BODY}",
    "two hosts": f"{HEAD}Host: localhost\r\n{LENGTH}\r\n{BODY}",
    "another version": f"POST /predict HTTP/3.0\r\nHost: localhost\r\n{LENGTH}\r\n{BODY}",
    "no version": "GET /model\r\n\r\n",
    "no request": "hello\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x00" * 40,
    "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a huge head": f"{HEAD}X-A: {'b' * 70_000}\r\n\r\n",
    "many headers": HEAD + "".join(f"X-{number}: {number}\r\n" for number in range(4000)) + "\r\n",
    "a huge target": f"GET /{'a' * 70_000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a chunk of no size": f"{HEAD}Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a negative chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a chunk of a huge size": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{'f' * 30}\r\n\r\n",
    "a long extension of a chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1;a={'b' * 20_000}\r\n[\r\n0\r\n\r\n",
    "a long field behind the body": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n0\r\nX-A: {'b' * 20_000}",
    "chunks in version 1.0": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".replace("1.1", "1.0"),
    "a target in UTF-8": "GET /m\xc3\xb6 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "another target": "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a target of a proxy": "GET http://attacker.example/model HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a tunnel": "CONNECT attacker.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "chunks that are longer than they say": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\nabcdef\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_ambiguous_heads_and_bodies(texts: RunningServer, name: str) -> None:
    received = texts.raw(SMUGGLED[name].encode("latin-1"))
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 4"), received
    assert received.count(b"HTTP/1.1") == 1, "one answer: nothing behind it is a request"
    assert b"error" in body and b"Traceback" not in body


SLOW = {
    "nothing of a head": ("", None),
    "a part of a head": (HEAD, 408),
    "a head without its end": (f"{HEAD}{LENGTH}", 408),
    "nothing of a body": (f"{HEAD}{LENGTH}\r\n", 408),
    "a part of a body": (f"{HEAD}{LENGTH}\r\n{BODY[:9]}", 408),
    "chunks without an end": (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\r\n[\r\n", 408),
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_senders_are_not_waited_for(texts: RunningServer, name: str) -> None:
    sent, status = SLOW[name]
    received = texts.raw(sent.encode())
    if status is None:
        assert received == b""
    else:
        assert received.startswith(f"HTTP/1.1 {status} ".encode()), received
        assert b"has not arrived within 0.5 s" in received


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(texts: RunningServer) -> None:
    with texts.connect() as client:
        client.sendall(f"{HEAD}Content-Length: {2**40}\r\nConnection: close\r\n\r\n".encode())
        received = read_all(client)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 1 MiB" in received


def test_a_body_in_chunks_that_is_too_large_is_refused_when_it_is(texts: RunningServer) -> None:
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    with texts.connect() as client:
        client.sendall(f"{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode() + 17 * chunk)
        received = client.recv(65536)
    assert received.startswith(b"HTTP/1.1 413 ")


def test_there_are_as_many_bad_requests_as_promised() -> None:
    corpus = (NO_JSON, NO_INPUT, NO_IMAGE, NO_FORM, ROUTES, SMUGGLED, SLOW)
    assert sum(map(len, corpus)) >= 80

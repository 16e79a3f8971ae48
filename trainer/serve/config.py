"""What the verb `serve` can be told. Units are in names, or among the first words of a key's meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.schema import Count, NonNegative, Positive, settings

MIB = 2**20
KEY_VARIABLE = "TRAINER_SERVE_API_KEY"


@settings
class Limits:
    """What a client may send, and for how long it is waited for."""

    max_body_mib: Positive = 16.0
    """MiB of a request's body."""
    max_pixels: Count = 2**24
    """Pixels of an image before it is resized; at most 67108864, which is the decoder's own limit."""
    max_characters: Count = 20_000
    """Characters of a text, or of a pair together."""
    max_inputs: Count = 64
    """Inputs in one request."""
    max_queue: Count = 512
    """Inputs that wait; a request that does not fit is answered with 429."""
    queue_s: Positive = 10.0
    """Seconds that an input may wait before its request is answered with 503."""
    request_s: Positive = 30.0
    """Seconds from a read request to its answer; then it is answered with 504."""
    head_s: Positive = 10.0
    """Seconds in which the head of a request has to arrive; then the connection is closed with 408."""
    body_s: Positive = 20.0
    """Seconds in which the body has to arrive; then the request is answered with 408."""
    max_connections: Count = 1024
    """Open connections; a further one is answered with 503 and closed."""


@settings
class ServeConfig(Limits):
    """Arguments of `serve`."""

    run: str | None = None
    """Directory of a run whose export is served, DIR/export/onnx where there are several."""
    export: str | None = None
    """Folder of one export, instead of run."""
    format: str | None = None
    """With run: which of its exports."""
    allow_native_code: bool = False
    """Serve an export of aot_inductor, which is machine code and can do whatever this process can."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all interfaces."""
    port: Annotated[int, Field(ge=0, lt=2**16)] = 8000
    """TCP port; 0 takes a free one."""
    workers: Count = 1
    """Threads that compute batches side by side, each with a copy of the network and, on GPUs, with one of its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What the workers compute on; auto takes GPUs where the format and the installed packages can use them."""
    max_batch: Count = 32
    """Inputs in one batch; 1 turns batching off."""
    max_wait_ms: NonNegative = 2.0
    """Milliseconds that an idle worker waits for more inputs before it computes a batch that is not full."""
    api_key_file: str | None = None
    """File with the key that /predict and /metrics then require; without it the variable TRAINER_SERVE_API_KEY."""
    access_log: bool = False
    """Print one line for each request to stderr."""
    reload_every_s: NonNegative = 2.0
    """Seconds between looks for a new export in the folder; 0 never looks."""
    drain_s: NonNegative = 1.0
    """Seconds after SIGTERM in which new requests are still answered, until load balancers have noticed."""

"""The state of a server, and the way of a request from its body to its results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request

from trainer.serve.batcher import Batcher, Item
from trainer.serve.body import Bodies
from trainer.serve.config import ServeConfig
from trainer.serve.inputs import json_inputs, multipart_files, parse_json, prepare
from trainer.serve.metrics import Metrics
from trainer.serve.model import ServedModel
from trainer.serve.problems import RequestProblem

LOG = logging.getLogger("trainer.serve")
# Decoding and tokenising release the interpreter for part of their time; more threads would only take it from workers.
PREPARING_THREADS = 2
# A body of so many bytes without an image is prepared in less time than a thread takes to get it and to hand it back.
SHORT_BYTES = 1024


class Service:
    """A server's model, queue and metrics. model: None until it is warmed up; a reload replaces it at once.

    api_key: None where everybody may ask. draining: a signal has come, and the server will end.
    """

    def __init__(self, config: ServeConfig, api_key: str | None) -> None:
        self.config, self.api_key = config, api_key
        self.model: ServedModel | None = None
        self.draining = False
        self.metrics = Metrics()
        self.bodies = Bodies(config)
        self.batcher = Batcher(
            config.workers, config.max_batch, config.max_wait_ms / 1000, config.max_queue, config.queue_s, self.metrics
        )
        self.preparing = ThreadPoolExecutor(PREPARING_THREADS, "prepare")
        self.metrics.ready.set_function(lambda: float(self.is_ready))

    @property
    def is_ready(self) -> bool:
        """Whether new requests should come here."""
        return self.model is not None and not self.draining

    def close(self) -> None:
        """End the threads; everything that was queued is computed first."""
        self.preparing.shutdown()
        self.batcher.close()

    async def predict(self, request: Request) -> list[dict[str, Any]]:
        """One result for each input of a request. Raises: RequestProblem."""
        model = self.model
        if model is None:
            raise RequestProblem(503, "the model is still being loaded", {"Retry-After": "1"})
        size = self.bodies.reserve(request)
        try:
            items = await self._items(model, request)
        finally:
            self.bodies.release(size)
        return await self._results(items)

    async def _items(self, model: ServedModel, request: Request) -> list[Item]:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_form = content_type == "multipart/form-data"
        if not is_form and content_type != "application/json":
            possible = "application/json" + (" or multipart/form-data" if model.kind == "image" else "")
            raise RequestProblem(415, f"the content type of the body has to be {possible}")
        if is_form and model.kind != "image":
            raise RequestProblem(415, f"this model takes {model.kind}, as application/json")
        body = await self.bodies.read(request)
        files = await multipart_files(request.headers, body, self.config.max_inputs) if is_form else None

        def parse() -> list[Item]:
            inputs = json_inputs(model, parse_json(body), self.config) if files is None else files
            return prepare(model, inputs, self.config)

        if model.kind != "image" and len(body) <= SHORT_BYTES:
            return parse()
        return await asyncio.get_running_loop().run_in_executor(self.preparing, parse)

    async def _results(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        self.batcher.submit(items)
        waiting = asyncio.gather(*(asyncio.wrap_future(item.result) for item in items))
        try:
            return await asyncio.wait_for(waiting, self.config.request_s)
        except TimeoutError as error:
            raise RequestProblem(504, f"no result within {self.config.request_s:g} s") from error
        except RequestProblem:
            raise
        except Exception as error:
            self.metrics.errors.labels("model").inc()
            LOG.exception("a batch failed")
            raise RequestProblem(500, "the model failed on this request; the server's log has the reason") from error
        finally:
            for item in items:  # those that have no result yet need none
                item.result.cancel()

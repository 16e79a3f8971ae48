"""The service: search for items, histories of users, ranked lists with reasons, and the page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from examples.recommendation.application import Recommender
from examples.recommendation.generated import NAME
from examples.recommendation.options import ServeOptions
from examples.web import listening, protect

PAGE = Path(__file__).parent / "page"
MAX_BODY_BYTES = 64 * 1024
MAX_HISTORY, MAX_RESULTS, MAX_FOUND = 100, 100, 20
ItemId = Annotated[str, Field(max_length=200)]


class Asked(BaseModel):
    """A history, the latest item last, and how many items are wanted; a key that is not known is refused."""

    model_config = ConfigDict(extra="forbid")

    history: Annotated[list[ItemId], Field(min_length=1, max_length=MAX_HISTORY)]
    k: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 10


def make_app(recommender: Recommender, host: str = "127.0.0.1") -> FastAPI:
    """The service for a recommender. Args: host: that it is bound to; on loopback no other name is answered."""
    app = FastAPI(title="Recommendation", docs_url=None, redoc_url=None)
    protect(app, host, MAX_BODY_BYTES)
    _add_catalogue(app, recommender)
    _add_recommendations(app, recommender)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def serve(options: ServeOptions) -> None:
    """Answer until Ctrl-C or SIGTERM. Raises: UserError: the address cannot be used, or nothing was trained."""
    recommender = Recommender.read(Path(options.out))
    config = uvicorn.Config(make_app(recommender, options.host), log_level="warning", server_header=False)
    with listening(options.host, options.port) as listener, suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def _add_catalogue(app: FastAPI, recommender: Recommender) -> None:
    catalogue, likes = recommender.catalogue, recommender.statistics.likes
    folded = [text.casefold() for text in catalogue.texts]
    users = {user: number for number, user in enumerate(catalogue.user_ids)}

    @app.get("/status")
    def status() -> dict[str, Any]:
        """What the service was trained on."""
        return {
            "source": recommender.application.source,
            "is_generated": recommender.application.source == NAME,
            "model": recommender.application.model,
            "num_items": len(catalogue.ids),
            "num_users": len(users),
        }

    @app.get("/items")
    def items(text: Annotated[str, Query(min_length=1, max_length=200)]) -> list[dict[str, str]]:
        """Items whose text has all words of `text`, the most popular first."""
        words = text.casefold().split()
        found = [number for number, each in enumerate(folded) if all(word in each for word in words)]
        found.sort(key=lambda number: -likes[number])
        return _items(recommender, found[:MAX_FOUND])

    @app.get("/users/{number}")
    def user(number: Annotated[int, Field(ge=0)]) -> dict[str, Any]:
        """The latest items of the user at a place in the order of ids; places are counted round."""
        number %= len(users)
        events = recommender.catalogue.interactions
        latest = events.items[events.users == number][-MAX_FOUND:].tolist()
        return {"user": catalogue.user_ids[number], "items": _items(recommender, latest)}


def _add_recommendations(app: FastAPI, recommender: Recommender) -> None:
    @app.post("/recommendations")
    def recommendations(asked: Asked) -> list[dict[str, Any]]:
        """The best items for a history, with a score and reasons."""
        unknown = [item for item in asked.history if item not in recommender.numbers]
        if unknown:
            raise HTTPException(422, f"history: unknown item {unknown[0]}")
        history = list(dict.fromkeys(recommender.numbers[item] for item in asked.history))
        ranked = recommender.recommend(history, asked.k)
        shown = _items(recommender, [each.item for each in ranked])
        return [
            {**item, "score": each.score, "reasons": each.reasons} for item, each in zip(shown, ranked, strict=True)
        ]


def _items(recommender: Recommender, numbers: Sequence[int]) -> list[dict[str, str]]:
    catalogue = recommender.catalogue
    return [{"item": catalogue.ids[number], "text": catalogue.texts[number]} for number in numbers]

"""The service: answers by HTTP, the page, changes of the answer base, the log and its corrections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query
from fastapi.staticfiles import StaticFiles
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from examples.customer_service.answer_base import Changed
from examples.customer_service.answers import read_slots
from examples.customer_service.assistant import Assistant
from examples.customer_service.data import GENERATED, MAX_QUESTION_CHARS
from examples.customer_service.options import ServeOptions
from examples.web import listening, protect

PAGE = Path(__file__).parent / "page"
MAX_BODY_BYTES = 256 * 1024


def _clean(text: str) -> str:
    """A text that can be stored. Raises: ValueError, which becomes a message to the client."""
    if "\0" in text:
        raise ValueError("has a null character")
    if not text.strip():
        raise ValueError("is empty")
    return text.strip()


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


CLEAN_LINE = (AfterValidator(_clean), AfterValidator(_on_one_line))
Question = Annotated[str, Field(max_length=MAX_QUESTION_CHARS), *CLEAN_LINE]
Intent = Annotated[str, Field(max_length=100), *CLEAN_LINE]


class Body(BaseModel):
    """A request's JSON object; a key that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class Asked(Body):
    """A customer's question."""

    question: Question


class Edited(Body):
    """An answer, questions that it answers too, and the version that was edited: 0 for a new one, null for any."""

    answer: Annotated[str, Field(max_length=4000), AfterValidator(_clean)]
    questions: Annotated[list[Question], Field(max_length=100)] = []
    version: int | None = None


class Corrected(Body):
    """The right intent of a question of the log."""

    intent: Intent


def make_app(assistant: Assistant, host: str = "127.0.0.1") -> FastAPI:
    """The service for an assistant. Args: host: that it is bound to; on loopback no other name is answered."""
    app = FastAPI(title="Customer service", docs_url=None, redoc_url=None)
    protect(app, host, MAX_BODY_BYTES)
    _add_answering(app, assistant)
    _add_answer_base(app, assistant)
    _add_log(app, assistant)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def serve(options: ServeOptions) -> None:
    """Answer until Ctrl-C or SIGTERM. Raises: UserError: the address cannot be used, or nothing was trained."""
    assistant = Assistant(Path(options.out), read_slots(options.slots))
    config = uvicorn.Config(make_app(assistant, options.host), log_level="warning", server_header=False)
    with listening(options.host, options.port) as listener:
        uvicorn.Server(config).run(sockets=[listener])


def _add_answering(app: FastAPI, assistant: Assistant) -> None:
    @app.post("/answer")
    def answer(asked: Asked) -> dict[str, Any]:
        """Answer a question."""
        reply = assistant.answer(asked.question)
        decision = reply.decision
        number = assistant.base.database.add_to_log(asked.question, decision)
        return {
            "id": number,
            "route": decision.route,
            "intent": decision.intent,
            "confidence": decision.confidence,
            "similarity": decision.similarity,
            "answer": reply.answer,
            "template": reply.template,
            "slots": reply.slots,
            "source_question": reply.source_question,
            "candidates": [
                {"intent": each.intent, "question": each.question, "score": each.score} for each in decision.candidates
            ],
        }

    @app.get("/status")
    def status() -> dict[str, Any]:
        """What the service was trained on."""
        options = assistant.application.options
        return {
            "is_generated": options.data == GENERATED,
            "precision": options.precision,
            "has_matcher": assistant.matcher is not None,
            "num_answers": len(assistant.base.snapshot.answers),
            "num_questions": len(assistant.base.snapshot.questions),
        }


def _add_answer_base(app: FastAPI, assistant: Assistant) -> None:
    base = assistant.base

    @app.get("/answers")
    def answers() -> list[dict[str, Any]]:
        """All answers with their versions."""
        return base.database.rows(
            "SELECT intent, answer, version, (SELECT count(*) FROM questions WHERE questions.intent = answers.intent)"
            " AS num_questions FROM answers ORDER BY intent"
        )

    @app.put("/answers/{intent}")
    def put(intent: Intent, edited: Edited) -> dict[str, Any]:
        """Add or edit an answer."""
        try:
            return {"version": base.put(intent, edited.answer, edited.questions, edited.version)}
        except Changed as error:
            raise HTTPException(409, str(error)) from error

    @app.delete("/answers/{intent}")
    def delete(intent: Intent) -> dict[str, Any]:
        """Delete an answer with its questions."""
        if not base.delete(intent):
            raise HTTPException(404, f"{intent}: no such answer")
        return {}


def _add_log(app: FastAPI, assistant: Assistant) -> None:
    database = assistant.base.database

    @app.get("/log")
    def log(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> list[dict[str, Any]]:
        """The newest questions, newest first."""
        return database.rows("SELECT * FROM log ORDER BY id DESC LIMIT ?", limit)

    @app.put("/log/{number}/correction")
    def correct(number: int, corrected: Corrected) -> dict[str, Any]:
        """Say which intent a question really has; `retrain` learns it."""
        if corrected.intent not in assistant.base.snapshot.answers:
            raise HTTPException(422, f"intent={corrected.intent}: has no answer; add one first")
        if not database.correct(number, corrected.intent):
            raise HTTPException(404, f"log {number}: no such question")
        return {}

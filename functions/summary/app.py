"""The function as an ASGI application: a route for a batch of queue records, and one for a message by HTTP."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from functions.aws import Numbers
from functions.summary.summarize import Outcome, Summarizer, UnknownSession
from infra.llm import ModelError
from infra.records import SessionEnded
from infra.store import StoreError
from infra.telemetry import get_logger

SQS_PATH = "/sqs"
"""Where a batch of the queue is posted. API Gateway has no route to it."""
STATUS: dict[type[Exception], int] = {ValueError: 400, UnknownSession: 409, ModelError: 502, StoreError: 503}
"""How a message that came by HTTP is answered when it failed: as the Edge function does."""

FAILED = "Failed"
"""The number beside `Written`, `Repeated` and `Stale`."""

log = get_logger("summary")


class Record(BaseModel):
    """What we need of one SQS record; Lambda sends more."""

    model_config = ConfigDict(extra="ignore")

    messageId: str  # noqa: N815 - Lambda's name
    body: str


class Batch(BaseModel):
    """Lambda's SQS event."""

    Records: list[Record]


def create_app(summarizer: Callable[[], Awaitable[Summarizer]], numbers: Numbers, secret: str | None = None) -> FastAPI:
    """The application. `summarizer` is awaited on each request, so that the first one may open the store.

    Who brings a session by HTTP must bring the `secret`, too; without one nobody can.
    """
    app = FastAPI(title="Session summary", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post(SQS_PATH)
    async def sqs(batch: Batch) -> dict[str, Any]:
        """Handle each record for itself, all at once; name those that must come again."""
        try:
            ready = await summarizer()
        except Exception as error:
            log.error("batch failed", records=len(batch.Records), cause=str(error))
            numbers.count({FAILED: len(batch.Records)})
            raise
        outcomes = await asyncio.gather(*(_take(ready, record) for record in batch.Records))
        numbers.count(Counter(FAILED if outcome is None else outcome.name.capitalize() for outcome in outcomes))
        failed = [record.messageId for record, outcome in zip(batch.Records, outcomes, strict=True) if outcome is None]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}

    @app.post("/summary")
    async def summary(request: Request) -> JSONResponse:
        """Handle one `SessionEnded` that comes by HTTP; with any answer but 200 it should be sent again."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secret or not secrets.compare_digest(given.encode(), secret.encode()):
            return JSONResponse({"error": "HANDOFF_SECRET is not set, or not what was sent"}, 401)
        try:
            ended = SessionEnded.from_json((await request.body()).decode())
            outcome = await (await summarizer()).summarize(ended)
        except Exception as error:
            status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
            if status == 500:
                log.exception("message failed")
            else:
                log.error("message failed", cause=str(error), status=status)
            numbers.count({FAILED: 1})
            return JSONResponse({"error": str(error) if status != 500 else "unexpected"}, status)
        numbers.count({outcome.name.capitalize(): 1})
        return JSONResponse({"outcome": outcome.value})

    return app


async def _take(summarizer: Summarizer, record: Record) -> Outcome | None:
    """What the record led to. None if it failed: then it comes again, and in the end to the dead-letter queue."""
    try:
        return await summarizer.summarize(SessionEnded.from_json(record.body))
    except (ValueError, UnknownSession, StoreError, ModelError) as error:
        log.error("record failed", message_id=record.messageId, cause=str(error))
    except Exception:
        log.exception("record failed", message_id=record.messageId)
    return None

"""The function as an ASGI application: a route for a batch of queue records, and one for a message by HTTP."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from hmac import compare_digest
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from functions.aws import Numbers
from functions.summary.summarize import Outcome, Summarizer, UnknownSession
from infra.records import SessionEnded
from infra.store import StoreError
from infra.telemetry import get_logger

SQS_PATH = "/sqs"
"""Where a batch of the queue is posted. API Gateway has no route to it."""
STATUS: dict[type[Exception], int] = {ValueError: 400, UnknownSession: 409, StoreError: 503}
"""How a message that came by HTTP is answered when it failed: as the Edge function does."""

MOST_RECEIVES = 5
"""How often the queue delivers a message before it is a dead letter: `maxReceiveCount` in `infra/aws/queues.yml`."""
FAILED, DROPPED = "Failed", "Dropped"
"""Metrics besides the outcomes."""

log = get_logger("summary")


class Record(BaseModel):
    """What we need of one SQS record; Lambda sends more."""

    model_config = ConfigDict(extra="ignore")

    messageId: str  # noqa: N815 - Lambda's name
    body: Any = None
    """A text, if the sender was ours. Whatever else stands there fails alone, and not its whole batch."""
    attributes: dict[str, str] = {}

    def text(self) -> str:
        """The body.

        Raises:
            ValueError: it is not a text.
        """
        if not isinstance(self.body, str):
            raise ValueError("the record's body must be a string")
        return self.body

    def receive(self) -> int:
        """How often the queue has delivered this record, from 1."""
        count = self.attributes.get("ApproximateReceiveCount", "")
        return int(count) if count.isdecimal() else 1


class Batch(BaseModel):
    """Lambda's SQS event."""

    Records: list[Record]


def create_app(
    summarizer: Callable[[], Awaitable[Summarizer]], numbers: Numbers, secrets: Collection[str] = ()
) -> FastAPI:
    """The application. `summarizer` is awaited on each request, so that the first one may open the store.

    Callers by HTTP must send one of the `secrets`. If there is none, nobody can call.
    """
    app = FastAPI(title="Session summary", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post(SQS_PATH)
    async def sqs(batch: Batch) -> dict[str, Any]:
        """Handle the records side by side, each for itself; name those that must come again."""
        try:
            ready = await summarizer()
        except Exception as error:
            log.error("batch failed", records=len(batch.Records), cause=str(error))
            if not isinstance(error, StoreError):
                numbers.count({FAILED: len(batch.Records)})
                raise
            taken = [_failed(record, error) for record in batch.Records]
        else:
            taken = await asyncio.gather(*(_take(ready, record) for record in batch.Records))
        numbers.count(Counter(number for number, _ in taken))
        again = [record.messageId for record, (_, again) in zip(batch.Records, taken, strict=True) if again]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in again]}

    @app.post("/summary")
    async def summary(request: Request) -> JSONResponse:
        """Handle one `SessionEnded` that comes by HTTP; with any answer but 200 it should be sent again.

        The caller does not come back to have a plain summary improved.
        """
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # All are compared, however the first turned out, so that the time tells nothing.
        is_right = [compare_digest(given.strip().encode(), secret.encode()) for secret in secrets]
        if scheme.lower() != "bearer" or not any(is_right):
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
        return JSONResponse({"outcome": (Outcome.WRITTEN if outcome is Outcome.PLAIN else outcome).value})

    return app


async def _take(summarizer: Summarizer, record: Record) -> tuple[str, bool]:
    """What the record led to, as it is counted, and whether it must come again."""
    try:
        outcome = await summarizer.summarize(SessionEnded.from_json(record.text()), record.receive())
    except StoreError as error:
        return _failed(record, error)
    except (ValueError, UnknownSession) as error:
        log.error("record failed", message_id=record.messageId, cause=str(error))
        return FAILED, True
    except Exception:
        log.exception("record failed", message_id=record.messageId)
        return FAILED, True
    return outcome.name.capitalize(), outcome is Outcome.PLAIN


def _failed(record: Record, error: StoreError) -> tuple[str, bool]:
    """A record that the store failed comes again, but is no dead letter: nothing is wrong with the message.

    Its session stays open, and so it is announced again, by its container or by the sweep.
    """
    if record.receive() < MOST_RECEIVES:
        log.error("record failed", message_id=record.messageId, cause=str(error))
        return FAILED, True
    log.error("record dropped, its session will be announced again", message_id=record.messageId, cause=str(error))
    return DROPPED, False

"""The hand-off without a queue: each `SessionEnded` by HTTP to the Edge function, which answers when it is done."""

import asyncio
from collections.abc import Sequence

import httpx
import msgspec

from infra.handoff.base import SQS_BATCH, HandoffUnavailable
from infra.records import SessionEnded
from infra.settings import Settings
from infra.telemetry import get_logger

TIMEOUT = httpx.Timeout(35.0, connect=3.0)
"""The function answers when the summary is written, and gives a model 20 s. Giving up earlier would ask it
twice."""
ADVICE = {
    400: "HANDOFF_URL: the function there does not know this message; deploy the function of this version",
    401: "HANDOFF_SECRET: the function has another one, or none",
    403: "HANDOFF_SECRET: the function has another one, or none",
    404: "HANDOFF_URL: there is no function there",
    405: "HANDOFF_URL: what is there takes no POST",
}
"""What somebody has to do before these answers change. The message is kept, and sent again, in the meantime."""

log = get_logger("handoff")


class _Done(msgspec.Struct):
    outcome: str


class _Failed(msgspec.Struct):
    error: str


class HttpHandoff:
    """A `Handoff` to the function at `HANDOFF_URL`, which is told `Authorization: Bearer <HANDOFF_SECRET>`.

    A message counts as taken only when the function itself says what it led to. The answer may get lost after the work
    is done: then it is sent again, which does no harm.
    """

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    @classmethod
    def connect(cls, settings: Settings) -> "HttpHandoff":
        """Build the client; no request is made."""
        assert settings.handoff_url
        assert settings.handoff_secret
        headers = {"Authorization": f"Bearer {settings.handoff_secret.get_secret_value()}"}
        headers["Content-Type"] = "application/json"
        client = httpx.AsyncClient(
            headers=headers, timeout=TIMEOUT, limits=httpx.Limits(max_connections=SQS_BATCH, keepalive_expiry=30.0)
        )
        return cls(client, settings.handoff_url)

    async def send(self, ended: Sequence[SessionEnded]) -> list[SessionEnded]:
        """See `Handoff.send`. All go at once."""
        failures = await asyncio.gather(*(self._send_one(one) for one in ended))
        refused = [(one, failure) for one, failure in zip(ended, failures, strict=True) if failure]
        if refused and len(refused) == len(ended):
            raise HandoffUnavailable("; ".join(sorted({failure for _, failure in refused})))
        for one, failure in refused:
            log.warning("not taken", session_id=one.session_id, epoch=one.epoch, cause=failure)
        return [one for one, _ in refused]

    async def _send_one(self, ended: SessionEnded) -> str | None:
        """Why the message was not taken; None if it was."""
        try:
            response = await self._client.post(self._url, content=ended.to_json())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"HANDOFF_URL: {type(error).__name__}: {error}"
        if response.status_code == 200:
            try:
                msgspec.json.decode(response.content, type=_Done)
            except (msgspec.DecodeError, UnicodeError):
                log.error("HANDOFF_URL: what answers there is not the summary function")
                return "HTTP 200, but not from the function"
            return None
        if advice := ADVICE.get(response.status_code):
            log.error(advice, status=response.status_code, session_id=ended.session_id, epoch=ended.epoch)
        return f"HTTP {response.status_code}{_said(response.content)}"

    async def close(self) -> None:
        """See `Handoff.close`."""
        await self._client.aclose()


def _said(body: bytes) -> str:
    """The function's own word on what went wrong, which quotes nothing of a conversation."""
    try:
        return f": {msgspec.json.decode(body, type=_Failed).error}"
    except (msgspec.DecodeError, UnicodeError):
        return ""

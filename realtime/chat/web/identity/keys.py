"""The public keys of a token issuer, from its JWKS: read once, read again now and then, never on a stranger's word."""

import asyncio
import time
from typing import Any

import httpx
import jwt

from chat.web.identity.base import Unauthorized
from infra.telemetry import get_logger

FRESH_SECONDS = 600.0
"""How old the keys may be before they are read again, in the background: Supabase's own edge keeps them as long."""
ANEW_SECONDS = 30.0
"""How often an unknown key id may have them read again: it may be a new key, or anything that a stranger makes up."""
AGAIN_SECONDS = 5.0
"""How often an issuer that did not answer is asked again."""
READ_SECONDS = 5.0
MOST_BYTES = 256 * 1024

log = get_logger("identity")


class Keys:
    """The keys at one address, by id. Those that are known stay known while it cannot be reached."""

    def __init__(self, url: str, http: httpx.AsyncClient | None = None) -> None:
        self._url = url
        self._http = http or httpx.AsyncClient(timeout=READ_SECONDS)
        self._known: dict[str, jwt.PyJWK] = {}
        self._read_at = self._asked_at = float("-inf")
        self._failed = False
        self._reading: asyncio.Task[None] | None = None

    async def key(self, kid: str | None) -> jwt.PyJWK:
        """The key of this id; without an id the only one there is.

        Raises:
            Unauthorized: there is no such key, or it cannot be known now.
        """
        if found := self._find(kid):
            if time.monotonic() - self._read_at > FRESH_SECONDS:
                self._ask()  # and go on with what is known
            return found
        if reading := self._reading or self._ask():
            await asyncio.shield(reading)
        if found := self._find(kid):
            return found
        if self._failed:
            raise Unauthorized("The sign-in service cannot be reached at the moment.", retry_after=AGAIN_SECONDS)
        raise Unauthorized("The token is signed with a key that its issuer does not name.")

    async def close(self) -> None:
        """Let go of connections."""
        if self._reading:
            self._reading.cancel()
        await self._http.aclose()

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._known) == 1:
            return next(iter(self._known.values()))
        return self._known.get(kid or "")

    def _ask(self) -> asyncio.Task[None] | None:
        """Read the keys, unless they were asked for a moment ago."""
        now = time.monotonic()
        if self._reading is None and now - self._asked_at >= (AGAIN_SECONDS if self._failed else ANEW_SECONDS):
            self._asked_at = now
            self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                self._known = _usable(await self._fetch())
            self._read_at = time.monotonic()
            self._failed = False
        except (httpx.HTTPError, OSError, ValueError, TimeoutError) as error:
            self._failed = True
            log.warning("keys cannot be read", url=self._url, cause=str(error) or type(error).__name__)
        finally:
            self._reading = None

    async def _fetch(self) -> Any:
        body = bytearray()
        async with self._http.stream("GET", self._url) as answer:
            answer.raise_for_status()
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES} bytes")
        return httpx.Response(200, content=bytes(body)).json()


def _usable(found: Any) -> dict[str, jwt.PyJWK]:
    """The keys that this server can check signatures with; the others are passed over.

    Raises:
        ValueError: there is none.
    """
    keys: dict[str, jwt.PyJWK] = {}
    listed = found.get("keys") if isinstance(found, dict) else None
    for each in listed if isinstance(listed, list) else []:
        try:
            key = jwt.PyJWK(each)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if key.key_type != "oct" and each.get("use", "sig") == "sig":
            keys[str(each.get("kid") or "")] = key
    if not keys:
        raise ValueError("no usable key in it")
    return keys

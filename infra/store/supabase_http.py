"""The HTTP client that the Supabase store stands on: it survives connections that died while nobody used them."""

from typing import Any

import httpx

DEAD = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""What becomes of a request on a connection that the other end has closed: before any of the answer."""


class ReconnectingClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` that repeats a request once, at once, if the connection it was sent on had died.

    A process that was frozen, such as a Lambda between two calls, wakes up with a pool of connections that the server
    gave up long ago. The second try goes out on a connection of its own, as the pool may have more of them. Only a
    connection from the pool is suspected: what fails on a new one is the server's trouble.

    Every request must be one that may be repeated: the first may have been done, and only its answer be lost. All of
    `Store` may; `open_session` then raises the epoch twice, and nobody has ever heard of the one in between.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._options = options | {"limits": httpx.Limits(max_keepalive_connections=0)}

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """See `httpx.AsyncClient.send`."""
        connected = False

        async def trace(event: str, info: Any) -> None:
            nonlocal connected
            connected = connected or event.startswith("connection.connect")

        request.extensions["trace"] = trace
        try:
            return await super().send(request, **options)
        except DEAD:
            if connected:
                raise
        async with httpx.AsyncClient(**self._options) as fresh:
            return await fresh.send(request, **options | {"stream": False})

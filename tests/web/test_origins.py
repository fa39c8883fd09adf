"""Whose pages may use the server, and which names it answers to."""

from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from chat.web.origins import Origins
from tests.conftest import Serve


def asked(**headers: str) -> dict[str, Any]:
    """A connection with these headers."""
    return {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}


@pytest.mark.parametrize(
    ("allowed", "headers", "allows"),
    [
        ([], {"host": "chat.example"}, True),
        ([], {"host": "chat.example", "origin": "https://chat.example"}, True),
        ([], {"host": "Chat.Example:8000", "origin": "http://chat.example:8000"}, True),
        ([], {"host": "[::1]:8000", "origin": "http://[::1]:8000"}, True),
        ([], {"host": "chat.example", "origin": "https://chat.example.evil"}, False),
        ([], {"host": "chat.example", "origin": "https://evil.chat.example"}, False),
        ([], {"host": "chat.example", "origin": "https://chat.example:444"}, False),
        ([], {"host": "chat.example", "origin": "null"}, False),
        ([], {"origin": "null"}, False),
        ([], {"host": "", "origin": ""}, False),
        (["https://good.example/"], {"host": "chat.example", "origin": "https://GOOD.example"}, True),
        (["https://good.example"], {"host": "chat.example", "origin": "http://good.example"}, False),
        (["*"], {"host": "chat.example", "origin": "https://evil.example"}, True),
    ],
)
def test_a_page_may_connect_where_it_is_named_or_ours(
    allowed: list[str], headers: dict[str, str], allows: bool
) -> None:
    """By scheme, host and port, in any case; a page without an origin of its own is nobody's."""
    assert Origins(allowed).allows(asked(**headers)) is allows


async def answers(url: str, host: str) -> tuple[int, int]:
    """What this server says by HTTP, and at its socket, to a request for this host, from a page of that name."""
    headers = {"Host": host, "Origin": f"http://{host}"}
    async with httpx.AsyncClient(trust_env=False) as http:
        status = (await http.get(f"{url.replace('ws', 'http', 1)}/sessions", headers=headers)).status_code
    address, port = url.removeprefix("ws://").split(":")
    try:
        origin: Any = f"http://{host}"
        async with connect(f"ws://{host}/ws/session/s", host=address, port=int(port), origin=origin, proxy=None):
            return status, 101
    except InvalidStatus as refused:
        return status, refused.response.status_code


async def test_a_page_from_elsewhere_cannot_rebind(serve: Serve) -> None:
    """A name that is made to lead to this machine is not answered to; its own names are, and those that are allowed."""
    async with serve(allowed_origins="https://tunnel.example") as server:
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "chat.localhost"):
            assert await answers(server.url, host) == (200, 101), host
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "tunnel.example.evil"):
            assert await answers(server.url, host) == (400, 403), host
        assert (await answers(server.url, "tunnel.example"))[0] == 200


async def test_whoever_signs_in_may_come_by_any_name(serve: Serve) -> None:
    """A page that is led here has no token of ours to show."""
    async with serve(auth="guest") as server:
        assert await answers(server.url, "chat.example") == (401, 101)

"""Polite visitors: they say something, read the answer, think a while, and count what went wrong."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
from websockets.exceptions import ConnectionClosed

from tests.support.client import ChatClient

THINK_SECONDS = (0.5, 3.0)


@dataclass
class Seen:
    """What the visitors saw, all of them together."""

    openings: list[float] = field(default_factory=list)
    """Seconds from connecting to `ready`."""
    waits: list[float] = field(default_factory=list)
    """Seconds from a message sent to the first piece of its answer."""
    refused: list[str] = field(default_factory=list)
    cut: int = 0
    accepted: dict[str, list[str]] = field(default_factory=dict)
    """For each session the messages that it accepted."""


def percentile(waits: Sequence[float], share: float) -> float:
    """The wait that this share of them did not exceed; 0 without any."""
    return sorted(waits)[int(share * (len(waits) - 1))] if waits else 0.0


async def visit(url: str, session_id: str, until: float, seen: Seen) -> None:
    """Chat in this session until loop time `until`; come back if the connection is cut."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(random.uniform(0, THINK_SECONDS[1]))
    mine = seen.accepted.setdefault(session_id, [])
    while loop.time() < until:
        try:
            began = time.monotonic()
            async with await ChatClient.connect(url, session_id) as client:
                await client.until("ready")
                seen.openings.append(time.monotonic() - began)
                while loop.time() < until:
                    await _say(client, f"hello number {len(mine)} of {session_id}", mine, seen)
                    await asyncio.sleep(random.uniform(*THINK_SECONDS))
        except (ConnectionClosed, OSError, TimeoutError):
            seen.cut += 1
            await asyncio.sleep(0.2)


async def _say(client: ChatClient, words: str, mine: list[str], seen: Seen) -> None:
    await client.say(words)
    began = time.monotonic()
    waiting = True
    while True:
        frame = await client.next()
        if frame["type"] == "accepted":
            mine.append(words)
        elif frame["type"] == "token" and waiting:
            waiting = False
            seen.waits.append(time.monotonic() - began)
        elif frame["type"] == "error":
            seen.refused.append(frame["code"])
            return
        elif frame["type"] == "done":
            return


async def missing(http: str, seen: Seen) -> int:
    """How many accepted messages are not in the store."""
    lost = 0
    async with httpx.AsyncClient(base_url=http, timeout=30) as client:
        for session_id, said in seen.accepted.items():
            stored: set[str] = set()
            after = 0
            while page := (await client.get(f"/sessions/{session_id}/events?after={after}&limit=1000")).json():
                stored |= {event["content"] for event in page}
                after = page[-1]["id"]
            lost += len(set(said) - stored)
    return lost

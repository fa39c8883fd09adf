"""What is in a spool, seen from outside as the next process would find it, and the death of a process that has one."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from chat.durability.courier import Courier
from chat.durability.spool import Spool

PATIENCE = 10.0
"""Seconds a test waits for a write before it fails."""


def spooled(folder: Path, courier: str) -> list[bytes]:
    """The courier's rows, in order."""
    with closing(sqlite3.connect(f"file:{folder / 'spool.db'}?mode=ro", uri=True)) as db:
        query = "SELECT payload FROM spool WHERE courier = ? ORDER BY number"
        return [payload for (payload,) in db.execute(query, (courier,))]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something becomes so that nobody tells of: a file on the disk."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - another process's file sets no event
            await asyncio.sleep(0.005)


async def die(courier: Courier[Any], spool: Spool) -> None:
    """End as a killed process does: nothing is delivered or written any more, and the file is free."""
    shelf = courier._shelf
    assert shelf
    tasks = [task for task in (courier._task, shelf._task) if task]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await spool.close()

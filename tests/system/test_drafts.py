"""A container that is killed in the middle of a reply takes no words away that somebody has read."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

from infra.local.postgres import Postgres
from tests.support.client import PATIENCE, ChatClient
from tests.support.supabase import a_lite, free_port, fresh_database
from tests.system.reported import container, stored

PACE = {"DEMO_TOKENS_PER_SECOND": "50"}
LAST_MOMENT_SECONDS = 1.0


async def read_for_a_while(client: ChatClient) -> list[tuple[float, str]]:
    """Ask for a long reply and read its beginning: each piece, and when it came."""
    now = asyncio.get_running_loop().time
    await client.say("Write 400 words")
    pieces: list[tuple[float, str]] = []
    while not pieces or pieces[-1][0] - pieces[0][0] < 2 * LAST_MOMENT_SECONDS:
        pieces.append((0, (await client.until("token"))["content"]))
        pieces[-1] = (now(), pieces[-1][1])
    return pieces


def shown(pieces: list[tuple[float, str]], until: float) -> str:
    """What somebody has had before their eyes at this moment."""
    return "".join(text for when, text in pieces if when <= until)


async def killed_and_back(data_dir: Path, **settings: str) -> tuple[str, str, str]:
    """What was shown a second before the kill, all that was shown, and the reply as the next container tells it."""
    port = free_port()
    async with container(data_dir, port, **settings, **PACE) as process:
        client = await ChatClient.connect(f"ws://127.0.0.1:{port}")
        pieces = await read_for_a_while(client)
        process.kill()
        killed = asyncio.get_running_loop().time()
        await process.wait()
    async with container(data_dir, port, **settings), await ChatClient.connect(f"ws://127.0.0.1:{port}") as back:
        question, reply = (await back.next())["history"]
    assert question["content"] == "Write 400 words"
    assert reply["metadata"]["interrupted"]
    return shown(pieces, killed - LAST_MOMENT_SECONDS), shown(pieces, killed), reply["content"]


async def test_the_words_of_a_killed_reply_are_there_after_the_restart(tmp_path: Path) -> None:
    """The interrupted reply holds all that was shown but for the last moment, and nothing else."""
    before, everything, reply = await killed_and_back(tmp_path)
    assert before
    assert reply.startswith(before)
    assert everything.startswith(reply) or reply.startswith(everything)


async def test_the_words_of_a_killed_reply_are_in_supabase_after_the_restart(
    postgres: Postgres, tmp_path: Path
) -> None:
    """The same holds with Supabase."""
    with ExitStack() as ending:
        lite = a_lite(fresh_database(postgres), ending)
        named = {"SUPABASE_URL": lite.url, "SUPABASE_KEY": lite.service_key}
        before, _, reply = await killed_and_back(tmp_path, **named)
    assert before
    assert reply.startswith(before)


async def test_the_words_of_a_killed_reply_are_stored_if_nobody_comes_back(tmp_path: Path) -> None:
    """The next container stores them by itself, so that the summary is made of them as well."""
    port = free_port()
    async with container(tmp_path, port, **PACE) as process:
        client = await ChatClient.connect(f"ws://127.0.0.1:{port}")
        pieces = await read_for_a_while(client)
        process.kill()
        killed = asyncio.get_running_loop().time()
        await process.wait()
    async with container(tmp_path, port), asyncio.timeout(PATIENCE):
        while len(events := await stored(tmp_path)) < 2:  # noqa: ASYNC110 - another process tells nobody
            await asyncio.sleep(0.02)
    assert events[1].content.startswith(shown(pieces, killed - LAST_MOMENT_SECONDS))
    assert events[1].metadata["interrupted"]

"""What users of other realtime AI servers reported, as it must be here: coming back, and ids that hold.

`test_reported_endings.py` and `test_reported_lines.py` have the rest, `test_page_recovery.py` what a page shows.
"""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support.client import PATIENCE, ChatClient
from tests.support.scripted import Pause, RepliesTo, ScriptedModel, Step
from tests.support.supabase import free_port
from tests.system.reported import Announced, container, departures, nothing_more
from tests.system.test_http import get
from tests.system.test_resume import back, drop


async def test_tokens_emitted_while_away_are_not_lost(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was emitted to nobody is replayed, and the turn goes on to the new socket, not to the one it began on."""
    left = departures(monkeypatch)
    away, here = Pause(), Pause()
    model = ScriptedModel(["one ", away, "two ", "three ", here, "four"])
    async with serve(model=model, linger_seconds=30) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        await client.until("token")
        await drop(client)
        await asyncio.wait_for(left.get(), PATIENCE)
        away.set()
        await asyncio.wait_for(here.reached.wait(), PATIENCE)
        again = await back(server, client)
        assert (await again.until("token"))["content"] == "two three "
        here.set()
        await again.until("done", reason="complete")
        assert client.text() + again.text() == "one two three four"
        await again.websocket.close()


async def test_a_blip_does_not_end_the_session(serve: Serve) -> None:
    """Nothing is announced, so nothing is summarised early: not even once the linger of the drop would be over."""
    announced = Announced()
    async with serve(handoff=announced, linger_seconds=0.5) as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        await drop(client)
        again = await back(server, client)
        other = await ChatClient.connect(server.url, "dropped-later")
        await other.until("ready")
        await drop(other)
        assert (await announced.of("dropped-later")).reason == "dropped"
        assert [ended.session_id for ended in announced.ended] == ["dropped-later"]
        await again.say("still the same session?")
        await again.until("done", reason="complete")
        await again.websocket.close(1000)
        ended = await announced.of("s1")
        assert (ended.epoch, ended.reason) == (1, "closed")


async def test_stop_works_after_a_resume(serve: Serve) -> None:
    """The turn that began on the lost socket is stopped from the new one, and its text is kept."""
    model = ScriptedModel(["half ", Pause()], ["whole"])
    async with serve(model=model, linger_seconds=30) as server:
        client = await ChatClient.connect(server.url)
        await client.say("go")
        turn_id = (await client.until("token"))["turn_id"]
        await drop(client)
        again = await back(server, client)
        await again.send({"type": "cancel", "turn_id": turn_id})
        assert (await again.until("done"))["reason"] == "cancelled"
        await asyncio.wait_for(model.cut_short.wait(), PATIENCE)
        await again.say("again")
        await again.until("done", reason="complete")
        assert again.text() == "whole"
        await again.websocket.close()
    assert [message.content for message in model.calls[1][1:]] == ["go", "half ", "again"]


@pytest.mark.parametrize("resume", [True, False])
async def test_coming_back_before_the_first_token_finds_the_turn(serve: Serve, resume: bool) -> None:
    """`ready` names the turn that has not said a word yet, to who resumes and to who is new, and its words follow."""
    gate = Pause()
    async with serve(model=ScriptedModel([gate, "hello"]), linger_seconds=30) as server:
        client = await ChatClient.connect(server.url)
        await client.say("go")
        accepted = await client.until("accepted")
        await asyncio.wait_for(gate.reached.wait(), PATIENCE)
        await drop(client)
        again = await (back(server, client) if resume else ChatClient.connect(server.url))
        ready = again.frames[0] if resume else await again.next()
        assert ready["active_turn_id"] == accepted["turn_id"]
        gate.set()
        await again.until("done", reason="complete")
        assert again.text() == "hello"
        await again.websocket.close()


async def test_a_killed_process_leaves_no_turn_open(tmp_path: Path) -> None:
    """After kill -9 and a restart, the history has the turn marked as interrupted: nobody waits for its end."""
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    async with container(tmp_path, port, DEMO_TOKENS_PER_SECOND="20") as process:
        client = await ChatClient.connect(url)
        await client.say("Write 2000 words", message_id="m1")
        turn_id = (await client.until("token"))["turn_id"]
        await client.until("saved")
        process.kill()
        await client.closed()
    async with container(tmp_path, port):
        seq = str(client.frames[-1]["seq"])
        again = await ChatClient.connect(url, epoch="1", after=seq)
        ready = await again.next()
        assert (ready["resumed"], ready["epoch"], ready["active_turn_id"]) == (False, 2, None)
        said, end = ready["history"]
        assert (said["content"], said["turn_id"], end["turn_id"]) == ("Write 2000 words", turn_id, turn_id)
        assert (end["role"], end["metadata"]["reason"], end["metadata"]["interrupted"]) == ("assistant", "error", True)
        await again.say("hello")
        await again.until("done", reason="complete")
        await again.websocket.close()


async def test_ids_made_at_once_differ_and_count_as_numbers(serve: Serve) -> None:
    """Sixty messages in one go: no id comes twice, and pages and positions go on across 9 to 10 and 99 to 100."""
    count = 60
    async with serve(model=RepliesTo({}), max_queued_messages=count) as server:
        client = await ChatClient.connect(server.url)
        async with client:
            await client.until("ready")
            await asyncio.gather(*(client.say(f"message {number}") for number in range(count)))
            for _ in range(count):
                done = await client.until("done")
            await client.until("saved", through=done["seq"])
            for after in (9, 99):
                again = await ChatClient.connect(server.url, epoch="1", after=str(after))
                assert ((await again.next())["seq"], (await again.next())["seq"]) == (after, after + 1)
                await drop(again)
            url = f"{server.http}/sessions/s1/events"
            pages = [(await get(f"{url}?after={after}&limit=1"))[1] for after in (8, 9, 98, 99)]
            _, events = await get(f"{url}?after=0&limit=1000")
    accepted = [frame for frame in client.frames if frame["type"] == "accepted"]
    assert len({frame["message_id"] for frame in accepted}) == len({frame["turn_id"] for frame in accepted}) == count
    assert [page[0]["id"] for page in pages] == [9, 10, 99, 100]
    assert len({event["event_id"] for event in events}) == len(events) == 2 * count
    assert all(one["id"] < other["id"] for one, other in pairwise(events))


async def test_a_second_reconnect_replays_nothing_again(serve: Serve) -> None:
    """What the first return was told is not told to the second, in the middle of a turn."""
    away, end = Pause(), Pause()
    async with serve(model=ScriptedModel(["one ", away, "two ", end, "three"]), linger_seconds=30) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        await client.until("token")
        await drop(client)
        away.set()
        await asyncio.wait_for(end.reached.wait(), PATIENCE)
        once = await back(server, client)
        await once.until("token", content="two ")
        await drop(once)
        twice = await back(server, once)
        assert await nothing_more(twice) == []
        end.set()
        await twice.until("done", reason="complete")
        assert client.text() + once.text() + twice.text() == "one two three"
        await twice.websocket.close()


async def test_frames_reach_their_own_session_only(serve: Serve) -> None:
    """Two sessions answer side by side and both come back in between; neither sees a frame of the other."""
    pause = {name: Pause() for name in ("apples", "bears")}
    script: dict[str, list[Step]] = {
        name: [*[f"{name} "] * 100, gate, *[f"{name} "] * 100] for name, gate in pause.items()
    }
    async with serve(model=RepliesTo(script), linger_seconds=30) as server:
        clients = {name: await ChatClient.connect(server.url, name) for name in pause}
        for name, client in clients.items():
            await client.say(name, message_id=f"about-{name}")
        await asyncio.gather(*(client.until("token") for client in clients.values()))
        for client in clients.values():
            await drop(client)
        seqs = {name: str(client.frames[-1]["seq"]) for name, client in clients.items()}
        again = {name: await ChatClient.connect(server.url, name, epoch="1", after=seqs[name]) for name in seqs}
        for gate in pause.values():
            gate.set()
        await asyncio.gather(*(client.until("done", reason="complete") for client in again.values()))
        for name in pause:
            frames = clients[name].frames + again[name].frames
            assert clients[name].text() + again[name].text() == f"{name} " * 200
            assert len({frame["turn_id"] for frame in frames if "turn_id" in frame}) == 1
            assert {frame["session_id"] for frame in frames if "session_id" in frame} == {name}
            await again[name].websocket.close()

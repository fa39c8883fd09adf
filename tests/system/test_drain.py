"""Going away: SIGTERM sends every client elsewhere, and loses nothing."""

import asyncio
import resource
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import chat.sessions.registry
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.queue import Queue
from tests.support.scripted import RepliesTo, ScriptedModel
from tests.support.spooled import until
from tests.support.supabase import free_port
from tests.system.test_ending import using
from tests.system.test_local import environment


async def test_idle_sessions_are_told_where_to_come_back_to(serve: Serve) -> None:
    """Each client gets `goodbye` with a time of its own and 1012; what was said is saved, and told so, before."""
    async with serve(drain_seconds=5) as server:
        clients = [await ChatClient.connect(server.url, f"s{number}") for number in range(30)]
        for client in clients:
            await client.until("ready")
        await clients[0].say("hello")
        await clients[0].until("done")
        server.leave()
        assert [await client.closed() for client in clients] == [1012] * 30
    goodbyes = [client.frames[-1] for client in clients]
    assert {goodbye["type"] for goodbye in goodbyes} == {"goodbye"}
    assert len({goodbye["reconnect_in_ms"] for goodbye in goodbyes}) > 10, "they would come back in one wave"
    assert "saved" in clients[0].types()[-3:]


async def test_a_running_reply_may_finish(serve: Serve) -> None:
    """Its client reads it to the end, and only then is sent elsewhere; meanwhile nobody new is let in."""
    go = asyncio.Event()
    async with serve(model=ScriptedModel(["one ", go, "two"]), drain_seconds=30) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        await client.until("token")
        server.leave()
        async with httpx.AsyncClient() as http:
            unwell = await http.get(f"{server.http}/health")
            assert (await http.get(f"{server.http}/live")).status_code == 503
        assert (unwell.status_code, unwell.json()["failing"]) == (503, ["draining"])
        late = await ChatClient.connect(server.url, "late")
        assert (await late.next())["code"] == "restarting"
        assert await late.closed() == 1012
        await client.say("and then?", message_id="m2")
        refused = await client.until("error")
        assert (refused["code"], refused["message_id"]) == ("restarting", "m2")
        go.set()
        assert await client.closed() == 1012
    assert client.text() == "one two"
    assert client.types()[-3:] == ["done", "saved", "goodbye"]


async def test_a_reply_that_takes_too_long_is_kept_as_far_as_it_came(serve: Serve, tmp_path: Path) -> None:
    """After `DRAIN_SECONDS` it is stopped, marked as interrupted, stored, and its client sent elsewhere."""
    async with serve(model=ScriptedModel(["one ", asyncio.Event()]), drain_seconds=0.1) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        await client.until("token")
        server.leave()
        assert await client.closed() == 1012
    assert [frame["reason"] for frame in client.frames if frame["type"] == "done"] == ["cancelled"]
    store = await SqliteStore.open(tmp_path / "realtime.db")
    *_, last = await store.events("s1", limit=10)
    await store.close()
    assert (last.content, last.metadata["interrupted"]) == ("one ", True)


async def test_a_second_signal_hurries(serve: Serve) -> None:
    """It does not wait for the replies; they are stored as far as they came all the same."""
    async with serve(model=ScriptedModel(["one ", asyncio.Event()]), drain_seconds=3600) as server:
        client = await ChatClient.connect(server.url)
        await client.say("hello")
        await client.until("token")
        server.leave()
        await asyncio.sleep(0)
        server.leave()
        async with asyncio.timeout(10):
            assert await client.closed() == 1012


async def test_draining_many_sessions_loses_nothing(
    serve: Serve, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand live sessions, all in the middle of an answer: every one is stored, and ended once."""
    monkeypatch.setattr(chat.sessions.registry, "LAST_SAVED_SECONDS", 20.0)
    count = 1000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))  # both ends of each socket are in this process
    go = asyncio.Event()
    model = RepliesTo({}, default=["one ", go, "two"])
    async with serve(**using(queue), model=model, drain_seconds=30) as server:
        clients = [await ChatClient.connect(server.url, f"s{number}") for number in range(count)]
        for client in clients:
            await client.say("hello")
        await asyncio.gather(*(client.until("token") for client in clients))
        server.leave()
        go.set()
        assert await asyncio.gather(*(client.closed() for client in clients)) == [1012] * count
        while (announced := (await asyncio.to_thread(queue.counts))[0]) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # the queue tells nobody
    assert {client.text() for client in clients} == {"one two"}
    store = await SqliteStore.open(tmp_path / "realtime.db")
    stored = [[event.content for event in await store.events(f"s{number}", limit=10)] for number in range(count)]
    await store.close()
    assert stored == [["hello", "one two"]] * count
    assert announced == count


async def test_sigterm_reaches_the_drain(tmp_path: Path) -> None:
    """The real process: its client is told goodbye, and it ends with exit code 0."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chat", env=environment(tmp_path, port), cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        client = await when_it_listens(port)
        await client.until("ready")
        process.send_signal(signal.SIGTERM)
        assert await client.closed() == 1012
        assert client.frames[-1]["type"] == "goodbye"
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def when_it_listens(port: int) -> ChatClient:
    async with asyncio.timeout(20):
        while True:
            try:
                return await ChatClient.connect(f"ws://127.0.0.1:{port}")
            except OSError:
                await asyncio.sleep(0.05)


async def test_sigterm_at_the_start_is_not_lost(tmp_path: Path) -> None:
    """To a container's first process the kernel brings only signals with a handler: there is one before all else."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat"),
        env=environment(tmp_path, free_port()),
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),  # as the kernel does
    )
    try:
        await until(lambda: _catches_sigterm(process.pid))
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 128 + signal.SIGTERM
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _catches_sigterm(pid: int) -> bool:
    """Whether the process has a handler, by the bits of `SigCgt` (man proc_pid_status)."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

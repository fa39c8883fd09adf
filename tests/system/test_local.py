"""The one command: `make run` as a process, from its welcome to its last breath."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.client import ChatClient
from tests.support.supabase import Supabase, free_port, open_store
from tests.system.test_http import get

ROOT = Path(__file__).resolve().parents[2]


def environment(data_dir: Path, port: int, **settings: str) -> dict[str, str]:
    """A clean environment with these settings."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT / 'realtime'}{os.pathsep}{ROOT}",
        "DATA_DIR": str(data_dir),
        "PORT": str(port),
        "DEMO_TOKENS_PER_SECOND": "0",
    } | settings


@contextmanager
def local_stack(data_dir: Path, port: int, **settings: str) -> Iterator["subprocess.Popen[str]"]:
    """The stack as `make run` starts it, up to its welcome; ended at the latest when the block is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.local.stack"],
        cwd=data_dir,
        env=environment(data_dir, port, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    try:
        for line in process.stdout:
            if "Ctrl-C ends it" in line:
                break
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=20)


def children(pid: int) -> list[int]:
    """The processes this one started, theirs among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry.name), *children(int(entry.name))]
    return found


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that are still there."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def summarised(port: int, session_id: str) -> dict[str, Any]:
    """The session's row once it has its summary."""
    async with asyncio.timeout(10):
        while True:
            _, row = await get(f"http://127.0.0.1:{port}/sessions/{session_id}")
            if row["end_time"]:
                return dict(row)
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_the_whole_product_runs_and_goes_by_one_command(tmp_path: Path, stop: signal.Signals) -> None:
    """Chat with a tool, disconnect, and the queue's message brings the summary; a signal ends every process cleanly."""
    port = free_port()
    with local_stack(tmp_path, port) as process:
        url = f"ws://127.0.0.1:{port}"
        async with await ChatClient.connect(url, "s1") as client:
            await client.say("fetch the sales data")
            await client.until("done", reason="complete")
        row = await summarised(port, "s1")
        assert row["final_summary"] == (
            "An analytical conversation of 1 message and 1 reply about sales. Tools used: fetch_data."
        )
        open_at_the_end = await ChatClient.connect(url, "s2")
        await open_at_the_end.say("hello")
        await open_at_the_end.until("done")
        started = children(process.pid)
        assert started
        process.send_signal(stop)
        assert await asyncio.to_thread(process.wait, 5) == 0
        assert not alive(started)
        await open_at_the_end.closed()
    with local_stack(tmp_path, port):
        _, row = await get(f"http://127.0.0.1:{port}/sessions/s2")
        assert row["final_summary"] == "A casual conversation of 1 message and 1 reply."


async def test_the_whole_product_runs_on_supabase(tmp_path: Path, supabase: Supabase) -> None:
    """With the two settings the same command stores there, and the function writes its summary there."""
    port, session_id = free_port(), f"local-{uuid4().hex}"
    named = {name.upper(): value for name, value in supabase.names().items()}
    with local_stack(tmp_path, port, **named):
        async with await ChatClient.connect(f"ws://127.0.0.1:{port}", session_id, user_id="ada") as client:
            await client.say("fetch the sales data")
            await client.until("done", reason="complete")
        await summarised(port, session_id)
    store = await open_store(supabase.url, supabase.service_key)
    row, events = await store.session(session_id), await store.events(session_id, limit=100)
    await store.close()
    assert row
    assert (row.user_id, row.mode, row.epoch) == ("ada", "analytical", 1)
    assert row.final_summary == (
        "An analytical conversation of 1 message and 1 reply about sales. Tools used: fetch_data."
    )
    assert [event.role for event in events] == ["user", "assistant", "tool", "tool", "assistant"]
    assert not (tmp_path / "realtime.db").exists()


def refused(data_dir: Path, port: int, **settings: str) -> tuple[int, str]:
    """Start the stack where it cannot; its exit code and what it printed, all of it."""
    finished = subprocess.run(
        [sys.executable, "-m", "infra.local.stack"],
        cwd=data_dir,
        env=environment(data_dir, port) | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return finished.returncode, finished.stdout + finished.stderr


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    """It names the port, and the exit code says failure."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = refused(tmp_path, port)
    assert code == 2
    assert output == (
        f"cannot start: HOST, PORT: cannot listen on 127.0.0.1:{port}: it is in use already. "
        f"Take another port: PORT={port + 1} make run\n"
    )


def test_a_port_that_another_of_us_has_is_said_so(tmp_path: Path) -> None:
    """Whoever starts the product twice need not look for what is in the way."""
    port = free_port()
    with local_stack(tmp_path, port):
        code, output = refused(tmp_path, port)
    assert code == 2
    assert f"127.0.0.1:{port}: another Realtime AI Backend has it. Take another port: PORT={port + 1}" in output
    assert output.count("\n") == 1


def test_an_unusable_data_dir_is_one_clear_line(tmp_path: Path) -> None:
    """It names the setting and the path."""
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    code, output = refused(tmp_path, free_port(), DATA_DIR=str(in_the_way))
    assert code == 2
    assert output.startswith("cannot start: DATA_DIR: cannot use ")
    assert str(in_the_way) in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "eighty"), ("LLM_PROVIDER", "oracle"), ("LINGER_SECONDS", "-1"), ("OPENAI_API_KEY", "")],
)
def test_a_wrong_setting_is_one_clear_line(tmp_path: Path, name: str, value: str) -> None:
    """It names the variable and does not repeat its value."""
    more = {"LLM_PROVIDER": "openai", "LLM_MODEL": "m"} if name == "OPENAI_API_KEY" else {}
    code, output = refused(tmp_path, free_port(), **{**more, name: value})
    assert code == 2
    assert output.startswith(f"cannot start: {name}: ")
    assert output.count("\n") == 1


@pytest.mark.parametrize("end", [signal.SIGHUP, signal.SIGKILL])
async def test_the_container_goes_with_its_stack(tmp_path: Path, end: signal.Signals) -> None:
    """A closed terminal, or a kill that nobody can hear: nothing is left on the port, and the session's end is kept."""
    port = free_port()
    with local_stack(tmp_path, port) as process:
        client = await ChatClient.connect(f"ws://127.0.0.1:{port}", "s1")
        await client.say("hello")
        await client.until("done")
        started = children(process.pid)
        process.send_signal(end)
        assert await client.closed() == 1012
        async with asyncio.timeout(10):
            while alive(started):  # noqa: ASYNC110 - they are nobody's children any more
                await asyncio.sleep(0.02)
    with local_stack(tmp_path, port):
        assert (await summarised(port, "s1"))["final_summary"] == "A casual conversation of 1 message and 1 reply."


def test_proxies_do_not_stand_in_the_way_of_a_local_stack(tmp_path: Path) -> None:
    """Not even one that no client of ours could use: nothing here calls anything elsewhere."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "socks5://127.0.0.1:9")
    with local_stack(tmp_path, free_port(), **proxies) as process:
        assert process.poll() is None


async def test_a_container_that_dies_ends_the_stack(tmp_path: Path) -> None:
    """If the container is killed the stack ends too, with an exit code that says failure."""
    with local_stack(tmp_path, free_port()) as process:
        (container,) = children(process.pid)
        os.kill(container, signal.SIGKILL)
        assert await asyncio.to_thread(process.wait, 10) != 0


async def test_a_model_that_never_answers_holds_up_no_stop(tmp_path: Path) -> None:
    """It is tried beside the rest: the stack is gone within five seconds, as with any other model."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as service:
        url = f"http://127.0.0.1:{service.sockets[0].getsockname()[1]}/v1"
        named = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": url, "LLM_MODEL": "m"}
        with local_stack(tmp_path, free_port(), **named) as process:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 5)
    assert process.returncode == 0

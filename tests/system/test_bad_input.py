"""What a client may send or be that it should not: each gets a named error or close code, and hurts nobody else."""

import asyncio
import json
import socket

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from infra.store.sqlite import SqliteStore
from tests.conftest import Serve, Served
from tests.support.client import ChatClient
from tests.support.scripted import RepliesTo

HELLO = {"type": "message", "content": "hello"}


async def is_well(server: Served, session_id: str = "neighbour") -> bool:
    """Whether another session is answered."""
    async with await ChatClient.connect(server.url, session_id) as neighbour:
        await neighbour.say("hello")
        return bool((await neighbour.until("done"))["reason"] == "complete")


@pytest.mark.parametrize(
    ("frame", "code", "named"),
    [
        ('{"type": "message", ', "bad_json", "valid JSON"),
        ("{" * 50_000, "bad_json", "valid JSON"),
        ('{"type": "shout", "content": "x"}', "unknown_type", "message, cancel, auth, ping"),
        ('{"content": "x"}', "unknown_type", "`type`"),
        ('{"type": "message"}', "bad_field", "`content`"),
        ('{"type": "message", "content": 5}', "bad_field", "$.content"),
        ('{"type": "message", "content": null}', "bad_field", "$.content"),
        ('{"type": "message", "content": "x", "message_id": 7}', "bad_field", "$.message_id"),
        ('{"type": "message", "content": "\\ud800"}', "bad_json", "valid JSON"),
        ('{"type": "cancel", "turn_id": []}', "bad_field", "$.turn_id"),
        ('{"type": "message", "content": "  \\n "}', "empty_message", "empty"),
        ("   ", "empty_message", "empty"),
        (json.dumps({"type": "message", "content": "x" * 101}), "message_too_long", "101"),
    ],
)
async def test_a_bad_frame_gets_an_error_and_the_socket_lives(serve: Serve, frame: str, code: str, named: str) -> None:
    """The error says what was wrong and where, without a stack trace; the next message is answered."""
    async with serve(max_message_chars=100) as server, await ChatClient.connect(server.url) as client:
        await client.send(frame)
        error = await client.until("error")
        assert error["code"] == code
        assert named in error["message"]
        assert "Traceback" not in json.dumps(error)
        await client.send(HELLO)
        assert (await client.until("done"))["reason"] == "complete"


async def test_a_binary_frame_closes_with_1003(serve: Serve) -> None:
    """The protocol is text; bytes end the connection with their own code."""
    async with serve() as server, await ChatClient.connect(server.url) as client:
        await client.send(b"\x00\x01")
        assert await client.closed() == 1003
        assert await is_well(server)


async def test_invalid_utf8_closes_with_1007(serve: Serve) -> None:
    """A text frame that is not UTF-8 ends the connection, as RFC 6455 has it."""
    async with serve() as server, await ChatClient.connect(server.url) as client:
        await client.next()
        await client.websocket.send(b"\xff\xfe", text=True)
        assert await client.closed() == 1007
        assert await is_well(server)


async def test_a_frame_over_the_limit_closes_with_1009(serve: Serve) -> None:
    """One byte over MAX_FRAME_BYTES ends the connection; the limit itself does not."""
    async with serve(max_frame_bytes=1024) as server:
        async with await ChatClient.connect(server.url) as client:
            await client.send("x" * 1024)
            await client.until("done")
            await client.send("x" * 1025)
            assert await client.closed() == 1009
        assert await is_well(server)


@pytest.mark.parametrize("session_id", ["a%20b", "%C3%A9", "x" * 129, "a/b", "..", "a%00", "a;b"])
async def test_a_bad_session_id_is_refused(serve: Serve, session_id: str) -> None:
    """An id outside [A-Za-z0-9_-]{1,128} gets an error a browser can read, then close code 4400."""
    async with serve() as server, await ChatClient.connect(server.url, session_id) as client:
        assert await client.closed() == 4400
        (error,) = client.frames
        assert error["code"] == "bad_session_id"


@pytest.mark.parametrize("user_id", ["x" * 129, "a\nb", "\x00"])
async def test_a_bad_user_id_is_refused(serve: Serve, user_id: str) -> None:
    """A user id that is too long, or holds control characters, closes with 4400."""
    async with serve() as server, await ChatClient.connect(server.url, user_id=user_id) as client:
        assert await client.closed() == 4400
        assert client.frames[0]["code"] == "bad_user_id"


async def test_another_users_session_is_refused(serve: Serve) -> None:
    """A session opened by one user is closed to another with 4403, live or not, and its text is not shown."""
    async with serve() as server:
        async with await ChatClient.connect(server.url, user_id="ann") as ann:
            await ann.say("my secret")
            await ann.until("done")
            async with await ChatClient.connect(server.url, user_id="ben") as ben:
                assert await ben.closed() == 4403
        async with await ChatClient.connect(server.url, user_id="ben") as ben_again:
            assert await ben_again.closed() == 4403
        assert "secret" not in json.dumps(ben.frames + ben_again.frames)


async def test_one_session_too_many_is_told_to_come_back(serve: Serve) -> None:
    """Over MAX_SESSIONS a client gets `at_capacity` with a delay and close code 1013; the others chat on."""
    async with serve(max_sessions=2, linger_seconds=0) as server:
        async with (
            await ChatClient.connect(server.url, "one") as one,
            await ChatClient.connect(server.url, "two") as two,
        ):
            await one.until("ready")
            await two.until("ready")
            async with await ChatClient.connect(server.url, "three") as three:
                assert await three.closed() == 1013
                assert three.frames[0]["code"] == "at_capacity"
                assert three.frames[0]["retry_after"] == 5
            async with await ChatClient.connect(server.url, "two") as second_tab:
                await second_tab.until("ready")
            await one.say("hello")
            await one.until("done")
        assert await is_well(server)


async def test_a_burst_of_ten_thousand_frames_is_answered_one_by_one(serve: Serve) -> None:
    """10,000 messages at once: some are accepted, the others told `busy`, each in its turn; a neighbour chats on."""
    never = asyncio.Event()
    model = RepliesTo({"flood": [never]})  # the flooder's turn never ends; the neighbour's do
    count = 10_000
    async with serve(model=model, max_queued_messages=8) as server, await ChatClient.connect(server.url) as client:
        await client.next()

        async def flood() -> None:
            for number in range(count):
                await client.say("flood", message_id=f"m{number}")

        async def answers() -> list[str]:
            answered: list[str] = []
            while len(answered) < count:
                frame = await client.next()
                if frame["type"] in ("accepted", "error"):
                    answered.append(frame["message_id"])
            return answered

        sending = asyncio.create_task(flood())
        reading = asyncio.create_task(answers())
        assert await is_well(server)
        await sending
        assert await reading == [f"m{number}" for number in range(count)]
    accepted = [frame for frame in client.frames if frame["type"] == "accepted"]
    refused = {frame["code"] for frame in client.frames if frame["type"] == "error"}
    assert len(accepted) == 9  # one runs, eight wait
    assert refused == {"busy"}


async def test_a_page_from_elsewhere_is_refused(serve: Serve) -> None:
    """With ALLOWED_ORIGINS set, a browser page of another origin gets HTTP 403; a client without origin is let in."""
    async with serve(allowed_origins="https://good.example, https://other.example") as server:
        url = f"{server.url}/ws/session/s1"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, origin="https://evil.example", proxy=None)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403
        async with connect(url, origin="https://good.example", proxy=None) as welcome:  # type: ignore[arg-type]
            assert json.loads(await welcome.recv())["type"] == "ready"
        assert await is_well(server)


async def test_a_fault_of_ours_at_the_door_is_told(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen error while a session opens is `internal` and 4500 to the client, without details."""

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret-key-123")

    async with serve() as server:
        with monkeypatch.context() as patched:
            patched.setattr(SqliteStore, "latest_events", broken)
            async with await ChatClient.connect(server.url) as client:
                assert await client.closed() == 4500
        assert [frame["code"] for frame in client.frames] == ["internal"]
        assert "secret" not in json.dumps(client.frames)
        assert await is_well(server)


async def test_a_stranger_who_asks_first_does_not_lock_the_owner_out(serve: Serve) -> None:
    """Both ask for the owner's stored session at once: the stranger is refused, the owner gets it."""
    async with serve() as server:
        async with await ChatClient.connect(server.url, user_id="ann") as ann:
            await ann.until("ready")
        ben, back = await asyncio.gather(
            ChatClient.connect(server.url, user_id="ben"), ChatClient.connect(server.url, user_id="ann")
        )
        assert await ben.closed() == 4403
        assert (await back.next())["type"] == "ready"
        await back.websocket.close()


async def test_a_handshake_too_long_for_us_is_refused_at_once(serve: Serve) -> None:
    """A header over 8 KiB, such as a large cookie, gets HTTP 400 instead of silence."""
    async with serve() as server:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{server.url}/ws/session/s1", additional_headers={"Cookie": "x" * 9000}, proxy=None)
        assert refused.value.response.status_code == 400
        assert await is_well(server)


async def test_noise_on_the_port_hurts_nobody(serve: Serve) -> None:
    """Bytes that are no HTTP, and handshakes cut short, leave the server serving."""
    async with serve() as server:
        for noise in (b"\x00" * 100, b"GET /ws/session/s1 HTTP/1.1\r\nUpgrade: websocket\r\n", b""):
            with socket.create_connection(("127.0.0.1", server.port)) as line:
                line.sendall(noise)
        assert await is_well(server)

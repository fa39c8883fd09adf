"""The function as Lambda calls it: the real handler, on a real database, with Lambda's own events."""

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from functions.summary import handler as module
from functions.summary.summarize import Summarizer
from infra.local.event_source import EventSource
from infra.records import SessionEnded, utc_now
from infra.settings import SettingsError
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.support.exchange import SUMMARY, an_exchange
from tests.support.queue import Queue

T = TypeVar("T")
EVENTS = Path(__file__).parents[1] / "events"
Handle = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The thread's event loop, which Mangum uses: Lambda's main thread has one, a test's has not."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def store(loop: asyncio.AbstractEventLoop, tmp_path: Path) -> Iterator[SqliteStore]:
    """The database the handler works on."""
    store = loop.run_until_complete(SqliteStore.open(tmp_path / "realtime.db"))
    yield store
    loop.run_until_complete(store.close())


@pytest.fixture
def handle(
    loop: asyncio.AbstractEventLoop, store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Handle]:
    """The handler, cold, with the settings of its environment."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    module._adapter.cache_clear()
    yield lambda event: module.handler(event, None)
    module._adapter.cache_clear()


def record(body: str, message_id: str = "r1") -> dict[str, Any]:
    """One record of Lambda's SQS event, from the recorded one."""
    recorded: dict[str, Any] = json.loads((EVENTS / "session-ended.json").read_text())["Records"][0]
    return recorded | {"messageId": message_id, "body": body}


def batch(*bodies: str) -> dict[str, Any]:
    """An event with a record for each body, named r1, r2, …."""
    return {"Records": [record(body, f"r{number}") for number, body in enumerate(bodies, 1)]}


def ended(session_id: str = "s1", epoch: int = 1, at: datetime | None = None) -> str:
    """A message as the container sends it."""
    at = at or utc_now()
    return SessionEnded(session_id=session_id, epoch=epoch, ended_at=at, reason="closed").to_json()


def failures(*message_ids: str) -> dict[str, Any]:
    """The answer that names these."""
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in message_ids]}


def talk(loop: asyncio.AbstractEventLoop, store: SqliteStore, session_id: str = "s1", opens: int = 1) -> datetime:
    """Store a session of one exchange, opened so often; when it began."""
    start = utc_now()

    async def write() -> None:
        for _ in range(opens):
            await store.open_session(session_id, "ann", at=start, container_id="c")
        await store.append(an_exchange(session_id, start))

    loop.run_until_complete(write())
    return start


def row(loop: asyncio.AbstractEventLoop, store: SqliteStore, session_id: str = "s1") -> tuple[Any, Any, Any]:
    """End, duration and summary as stored."""
    session = loop.run_until_complete(store.session(session_id))
    assert session
    return session.end_time, session.duration, session.final_summary


def test_a_message_ends_its_session(loop: asyncio.AbstractEventLoop, store: SqliteStore, handle: Handle) -> None:
    """The row gets the end, the duration in whole seconds and a summary; nothing failed."""
    at = talk(loop, store) + timedelta(seconds=75)
    assert handle(batch(ended(at=at))) == failures()
    end, duration, summary = row(loop, store)
    assert (end, duration) == (at, 75)
    assert summary == SUMMARY


def test_a_repeated_message_changes_nothing(
    loop: asyncio.AbstractEventLoop, store: SqliteStore, handle: Handle
) -> None:
    """SQS delivers at least once: the second time, alone or in one batch, is taken and leaves the row as it was."""
    at = talk(loop, store) + timedelta(seconds=10)
    assert handle(batch(ended(at=at), ended(at=at))) == failures()
    before = row(loop, store)
    assert handle(batch(ended(at=at + timedelta(hours=1)))) == failures()
    assert row(loop, store) == before


def test_a_stale_message_is_dropped(loop: asyncio.AbstractEventLoop, store: SqliteStore, handle: Handle) -> None:
    """The user came back: the message of the epoch before is taken and ends nothing; the next one does."""
    talk(loop, store, opens=2)
    assert handle(batch(ended(epoch=1))) == failures()
    assert row(loop, store) == (None, None, None)
    assert handle(batch(ended(epoch=2))) == failures()
    assert row(loop, store)[0] is not None


@pytest.mark.parametrize(
    "bad",
    [
        "not json",
        "[]",
        "{}",
        '{"session_id":"s1","epoch":1,"ended_at":"2026-01-01T00:00:00Z","reason":"closed","version":2}',
        '{"session_id":"s1","epoch":"1","ended_at":"2026-01-01T00:00:00Z","reason":"closed"}',
        '{"session_id":"s1","epoch":1,"ended_at":"yesterday","reason":"closed"}',
        '{"session_id":"s1","epoch":1,"ended_at":"2026-01-01T00:00:00","reason":"closed"}',
        '{"session_id":"a b","epoch":1,"ended_at":"2026-01-01T00:00:00Z","reason":"closed"}',
        ended("unknown"),
        ended("s1", epoch=9),
    ],
)
def test_a_bad_record_fails_alone(
    loop: asyncio.AbstractEventLoop, store: SqliteStore, handle: Handle, bad: str
) -> None:
    """Malformed, of an unknown version, session or epoch: it is named as failed, and its neighbours are handled."""
    talk(loop, store, "good")
    assert handle(batch(bad, ended("good"))) == failures("r1")
    assert row(loop, store, "good")[0] is not None


@pytest.mark.parametrize("body", [None, 1, {"session_id": "s1"}, []])
def test_a_record_whose_body_is_no_text_fails_alone(
    loop: asyncio.AbstractEventLoop, store: SqliteStore, handle: Handle, body: object
) -> None:
    """A record whose body is not text fails alone; its batch is handled."""
    talk(loop, store, "good")
    event = batch("{}", ended("good"))
    event["Records"][0]["body"] = body
    assert handle(event) == failures("r1")
    assert row(loop, store, "good")[0] is not None


def test_a_store_that_fails_has_every_record_come_again(
    loop: asyncio.AbstractEventLoop, store: SqliteStore, handle: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its store the function claims nothing, so that the queue keeps the messages."""
    monkeypatch.setenv("DATA_DIR", "/proc/nowhere")
    assert handle(batch(ended(), ended("s2"))) == failures("r1", "r2")


def test_what_failed_is_logged_with_its_session(
    loop: asyncio.AbstractEventLoop,
    store: SqliteStore,
    handle: Handle,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Log lines carry the session's id, so a missing summary is explained; a batch's records are not confused."""
    monkeypatch.setenv("LOG_FORMAT", "json")
    monkeypatch.setenv("HANDOFF_SECRET", "s3cret")
    talk(loop, store)
    handle(batch(ended("nobody", 3), ended(), "poison"))
    handle(by_http(ended("nobody", 4)))
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    told = [(line["event"], line.get("session_id"), line.get("epoch"), line.get("message_id")) for line in lines]
    assert sorted(told, key=str) == [
        ("message failed", "nobody", 4, None),
        ("record failed", "nobody", 3, "r1"),
        ("record failed", None, None, "r3"),
        ("written", "s1", 1, None),
    ]


def test_the_end_is_not_before_the_last_event(
    loop: asyncio.AbstractEventLoop, store: SqliteStore, handle: Handle
) -> None:
    """With clocks apart, a message dated before the last event ends the session at that event."""
    start = talk(loop, store)
    assert handle(batch(ended(at=start - timedelta(hours=1)))) == failures()
    assert row(loop, store)[:2] == (start, 0)


def test_an_empty_batch_is_fine(handle: Handle) -> None:
    """An empty batch has no failures."""
    assert handle({"Records": []}) == failures()


def test_in_lambda_sqlite_is_refused(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """In AWS Lambda a SQLite file would be lost: the function refuses to start, naming the variable."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "summary")
    with pytest.raises(SettingsError, match="SUPABASE_URL"):
        handle(batch(ended()))


def test_the_poller_deletes_what_succeeded_and_dead_letters_the_rest(
    loop: asyncio.AbstractEventLoop, store: SqliteStore, handle: Handle, queue: Queue
) -> None:
    """Through the real queue: the good message is gone after one poll, the poison one dead after `maxReceiveCount`."""
    talk(loop, store)
    queue.send("poison")
    queue.send(ended())
    source = EventSource(queue.sqs, queue.url, lambda event, context: handle(event))
    assert source.poll(0) == 2
    assert queue.counts() == (0, 1)  # the poison message, hidden until its visibility timeout
    assert row(loop, store)[0] is not None
    queue.retry_at_once()
    queue.sqs.purge_queue(QueueUrl=queue.url)
    queue.send("poison")
    assert [source.poll(0) for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    assert queue.bodies(queue.dead_url) == ["poison"]


def test_a_handler_that_raises_leaves_the_whole_batch(queue: Queue) -> None:
    """As with Lambda, an invocation that failed deletes nothing."""

    def raising(event: dict[str, Any], context: Any) -> dict[str, Any]:
        raise RuntimeError("boom")

    queue.send("one")
    queue.send("two")
    assert EventSource(queue.sqs, queue.url, raising).poll(0) == 2
    queue.retry_at_once()
    assert queue.counts() == (0, 2)


def by_http(body: str, authorization: str | None = "Bearer s3cret") -> dict[str, Any]:
    """The event of API Gateway's HTTP API, version 2.0, for a POST of this body."""
    headers = {"content-type": "application/json"} | ({"authorization": authorization} if authorization else {})
    http = {"method": "POST", "path": "/summary", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "x"}
    return {
        "version": "2.0",
        "routeKey": "POST /summary",
        "rawPath": "/summary",
        "rawQueryString": "",
        "headers": headers,
        "requestContext": {"http": http, "stage": "$default", "domainName": "localhost"},
        "body": body,
        "isBase64Encoded": False,
    }


@pytest.fixture
def call(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any]]:
    """Send a message by HTTP to the handler, whose secret is s3cret; status and answer."""
    monkeypatch.setenv("HANDOFF_SECRET", "s3cret")

    def calling(body: str, authorization: str | None = "Bearer s3cret") -> tuple[int, Any]:
        answer = handle(by_http(body, authorization))
        return answer["statusCode"], json.loads(answer["body"])

    return calling


def test_a_message_may_come_by_http(
    loop: asyncio.AbstractEventLoop, store: SqliteStore, call: Callable[..., tuple[int, Any]]
) -> None:
    """With the secret, one message is handled as from the queue, and the answer says what it led to."""
    start = talk(loop, store, opens=2)
    at = start + timedelta(seconds=5)
    assert call(ended(epoch=2, at=at)) == (200, {"outcome": "written"})
    assert row(loop, store)[:2] == (at, 5)
    assert call(ended(epoch=2, at=at)) == (200, {"outcome": "repeated"})
    assert call(ended(epoch=1)) == (200, {"outcome": "stale"})
    assert call(ended(epoch=3)) == (409, {"error": "no session s1 at epoch 3"})
    status, answer = call('{"session_id": "s1"}')
    assert (status, "epoch" in answer["error"]) == (400, True)


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer ", "Bearer wrong", "Bearer s3cret2", "s3cre", "s3cret", "Basic s3cret", "Bearer \u00e9"],
)
def test_by_http_only_who_has_the_secret_is_heard(
    loop: asyncio.AbstractEventLoop,
    store: SqliteStore,
    call: Callable[..., tuple[int, Any]],
    authorization: str | None,
) -> None:
    """A caller without the secret is refused, and nothing is written."""
    talk(loop, store)
    assert call(ended(), authorization)[0] == 401
    assert row(loop, store) == (None, None, None)


def test_the_old_secret_is_good_while_it_is_changed(
    store: SqliteStore, call: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With HANDOFF_SECRET_OLD set both are, and nothing else."""
    assert call(ended(), "Bearer before")[0] == 401
    monkeypatch.setenv("HANDOFF_SECRET_OLD", "before")
    module._adapter.cache_clear()
    assert [call(ended(), f"Bearer {secret}")[0] for secret in ("before", "s3cret", "neither", "")] == [
        409,
        409,
        401,
        401,
    ]


def test_the_scheme_may_be_written_in_any_case(store: SqliteStore, call: Callable[..., tuple[int, Any]]) -> None:
    """As RFC 9110 has it, and as the Edge twin does."""
    assert call(ended(), "bearer s3cret")[0] == 409


def test_without_a_secret_nobody_is_heard_by_http(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that was given none is not open to those who send none."""
    monkeypatch.delenv("HANDOFF_SECRET", raising=False)
    for authorization in (None, "", "Bearer ", "Bearer None"):
        assert handle(by_http(ended(), authorization))["statusCode"] == 401


def test_by_http_a_store_that_fails_has_the_message_come_again(
    call: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is 503, and quotes nothing of what is stored; what nobody foresaw is a bare 500."""
    for failure, expected in (
        (StoreUnavailable("the database is locked"), (503, {"error": "the database is locked"})),
        (RuntimeError("what the user said"), (500, {"error": "unexpected"})),
    ):

        async def fail(*_: Any, failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr(Summarizer, "summarize", fail)
        assert call(ended()) == expected

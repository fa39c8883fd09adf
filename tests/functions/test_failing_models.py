"""A session ends whatever the model does, and is not paid for without end."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from functions.summary import handler as module
from functions.summary.app import MOST_RECEIVES
from functions.summary.summarize import Summarizer
from infra.local.event_source import EventSource
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.functions.test_handler import Handle, call, ended, handle, loop, row, store, talk  # noqa: F401 - fixtures
from tests.support.exchange import SUMMARY
from tests.support.failing_model import FAILURES, PASSING, FailingModel, Failure
from tests.support.queue import Queue


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingModel]:
    """The service that the handler asks."""
    monkeypatch.setattr("functions.summary.summarize.MODEL_SECONDS", 0.3)
    with FailingModel().running() as service:
        named = {
            "LLM_PROVIDER": "openai",
            "LLM_MODEL": "m",
            "OPENAI_BASE_URL": service.base_url,
        }
        for name, value in named.items():
            monkeypatch.setenv(name, value)
        yield service


def deliver(queue: Queue, handle: Handle) -> int:  # noqa: F811
    """Deliver what is on the queue until nothing is left of it; how many times a message was delivered."""
    queue.retry_at_once()
    source = EventSource(queue.sqs, queue.url, lambda event, context: handle(event))
    deliveries = 0
    while received := source.poll(wait_seconds=0):
        deliveries += received
    return deliveries


@pytest.mark.parametrize("failure", FAILURES)
def test_a_session_ends_whatever_the_model_does(
    loop: asyncio.AbstractEventLoop,  # noqa: F811
    store: SqliteStore,  # noqa: F811
    handle: Handle,  # noqa: F811
    queue: Queue,
    model: FailingModel,
    failure: Failure,
) -> None:
    """At its first message, with its end, its duration and the plain summary; the model is asked once more at most."""
    model.failure = failure
    at = talk(loop, store) + timedelta(seconds=75)
    queue.send(ended(at=at))
    assert deliver(queue, handle) == (2 if failure in PASSING else 1)
    assert row(loop, store) == (at, 75, SUMMARY)
    assert model.calls == (2 if failure in PASSING else 1)
    assert queue.bodies(queue.dead_url) == []
    queue.send(ended(at=at))  # whoever announces it again does not have it paid for again
    deliver(queue, handle)
    assert model.calls == (2 if failure in PASSING else 1)


@pytest.mark.parametrize("failure", PASSING)
def test_a_summary_that_was_plain_is_improved_once(
    loop: asyncio.AbstractEventLoop,  # noqa: F811
    store: SqliteStore,  # noqa: F811
    handle: Handle,  # noqa: F811
    queue: Queue,
    model: FailingModel,
    failure: Failure,
) -> None:
    """When the message comes for the second time and the model works again; the end stays as it was."""
    model.failure = failure
    at = talk(loop, store)
    queue.send(ended(at=at))
    queue.retry_at_once()
    source = EventSource(queue.sqs, queue.url, lambda event, context: handle(event))
    source.poll(wait_seconds=0)
    assert row(loop, store) == (at, 0, SUMMARY)
    model.failure = None
    assert deliver(queue, handle) == 1
    assert row(loop, store) == (at, 0, "Half of it.")


@pytest.mark.parametrize("failure", FAILURES)
def test_by_http_it_ends_at_once_as_well(
    loop: asyncio.AbstractEventLoop,  # noqa: F811
    store: SqliteStore,  # noqa: F811
    call: Callable[..., tuple[int, Any]],  # noqa: F811
    model: FailingModel,
    failure: Failure,
) -> None:
    """With one call of the model and a plain summary, and the caller is told that all is done."""
    model.failure = failure
    at = talk(loop, store) + timedelta(seconds=75)
    assert call(ended(at=at)) == (200, {"outcome": "written"})
    assert row(loop, store) == (at, 75, SUMMARY)
    assert model.calls == 1


def test_the_queue_and_the_function_count_alike() -> None:
    """The function's idea of a message's last delivery is the queue's own."""
    queues = (Path(__file__).parents[2] / "infra/aws/queues.yml").read_text()
    assert f"maxReceiveCount: {MOST_RECEIVES}\n" in queues


@pytest.mark.parametrize("opens", [True, False])
def test_a_message_that_the_store_failed_is_no_dead_letter(
    handle: Handle,  # noqa: F811
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    opens: bool,
) -> None:
    """Nothing is wrong with it, and its session stays open: it is announced again. One that nobody can read is."""

    async def fail(*_: Any) -> None:
        raise StoreUnavailable("it rains")

    if opens:
        monkeypatch.setattr(Summarizer, "summarize", fail)
    else:
        monkeypatch.setattr(module, "open_store", fail)
    queue.send(ended())
    assert deliver(queue, handle) == MOST_RECEIVES
    assert queue.bodies(queue.dead_url) == []
    monkeypatch.undo()
    queue.send("{nonsense")
    deliver(queue, handle)
    assert queue.bodies(queue.dead_url) == ["{nonsense"]

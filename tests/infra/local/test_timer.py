"""The local stack's schedule: at once, again and again, whatever a call does, until it is stopped."""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from infra.local.stack import pace
from infra.local.timer import Timer
from tests.conftest import make_settings

PATIENCE = 5.0
"""Seconds a test waits for what should happen at once before it fails."""
NEVER = 3600.0


class Sweep:
    """A handler that tells of each call and does in it what a test says."""

    def __init__(self) -> None:
        self.calls: queue.Queue[dict[str, Any]] = queue.Queue()
        self.failure: Exception | None = None
        self.timers: list[Timer] = []

    def __call__(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        """See `Handler`."""
        self.calls.put(event)
        if self.failure:
            raise self.failure
        return {}

    def start(self, every_seconds: float) -> Timer:
        """Have a timer call this."""
        self.timers.append(timer := Timer(self, every_seconds))
        timer.start()
        return timer


@pytest.fixture
def sweep() -> Iterator[Sweep]:
    """One whose timers are over when the test is."""
    sweep = Sweep()
    yield sweep
    for timer in sweep.timers:
        timer.stop()
        timer._thread.join(PATIENCE)


def test_it_calls_at_once_with_a_scheduled_event(sweep: Sweep) -> None:
    """Nobody waits a whole turn for the first call."""
    sweep.start(NEVER)
    assert sweep.calls.get(timeout=PATIENCE)["detail-type"] == "Scheduled Event"


def test_it_calls_again_whatever_happens(sweep: Sweep) -> None:
    """A call that fails is a line in the log, with the cause, and the next one comes."""
    sweep.failure = RuntimeError("the store is down")
    with capture_logs() as logs:
        sweep.start(0.001)
        for _ in range(3):
            sweep.calls.get(timeout=PATIENCE)
    assert {(line["event"], line["cause"]) for line in logs} == {("call failed", "RuntimeError: the store is down")}


def test_stopped_it_calls_no_more_and_waits_for_nobody(sweep: Sweep) -> None:
    """In the middle of a call or between two."""
    resting = sweep.start(NEVER)
    sweep.calls.get(timeout=PATIENCE)
    resting.stop()
    resting._thread.join(PATIENCE)
    assert not resting._thread.is_alive()

    inside, leave = threading.Event(), threading.Event()

    def slow(event: dict[str, Any], context: Any) -> dict[str, Any]:
        inside.set()
        leave.wait(PATIENCE)
        return sweep(event, context)

    timer = Timer(slow, 0)
    timer.start()
    inside.wait(PATIENCE)
    timer.stop()
    assert timer._thread.is_alive()
    leave.set()
    timer._thread.join(PATIENCE)
    assert sweep.calls.qsize() == 1


@pytest.mark.parametrize(
    ("given", "its_own"),
    [
        ({}, False),
        ({"heartbeat_seconds": 10}, True),
        ({"dead_after_seconds": 60}, True),
        ({"supabase_url": "http://localhost:1", "supabase_key": "k"}, True),
    ],
)
def test_the_local_stack_is_quick_to_declare_dead_only_its_own(
    tmp_path: Path, given: dict[str, Any], its_own: bool
) -> None:
    """What the user set holds, even to the default; and in a Supabase may be others, who beat at the usual pace."""
    faster = pace(make_settings(tmp_path, **given))
    assert (faster == {}) == its_own
    settings = make_settings(tmp_path, **{name.lower(): value for name, value in faster.items()})
    assert settings.dead_after_seconds == (60 if its_own else 5)

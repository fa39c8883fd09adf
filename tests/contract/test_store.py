"""What every `Store` promises. A backend joins by an entry in `BACKENDS`; ids are fresh, so it may be shared."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from msgspec import structs

from infra.records import Event, Orphan, Role, Session, SessionListed, UserStats
from infra.store import NotYours, Store, StoreError, StoreRefused
from infra.store.base import MOST_ANNOUNCEMENTS, MOST_COUNTED
from infra.store.sqlite import SqliteStore
from infra.store.supabase import SupabaseStore
from tests.conftest import make_settings
from tests.support.supabase import Supabase, fresh

DAWN = datetime(2025, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ELSEWHERE = timezone(timedelta(hours=-9, minutes=-30))


async def _sqlite(request: pytest.FixtureRequest, folder: Path) -> Store:
    return await SqliteStore.open(folder / "contract.db")


async def _supabase(request: pytest.FixtureRequest, folder: Path) -> Store:
    named: Supabase = request.getfixturevalue("supabase")
    return await SupabaseStore.open(make_settings(folder, **named.names()))


BACKENDS: dict[str, Callable[[pytest.FixtureRequest, Path], Awaitable[Store]]] = {
    "sqlite": _sqlite,
    "supabase": _supabase,
}


@pytest.fixture(params=BACKENDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """One backend after the other."""
    opened = await BACKENDS[request.param](request, tmp_path)
    yield opened
    await opened.close()


async def an_open_session(store: Store, user_id: str | None = None, at: datetime = DAWN) -> Session:
    return await store.open_session(fresh("s"), user_id or fresh("u"), at=at, container_id="box-1")


def an_event(session_id: str, content: str = "hello", *, role: Role = "user", **changed: Any) -> Event:
    fields: dict[str, Any] = {"event_id": str(uuid4()), "turn_id": str(uuid4()), "timestamp": DAWN, "metadata": {}}
    return Event(session_id=session_id, role=role, content=content, **(fields | changed))


async def stored(store: Store, session_id: str) -> list[Event]:
    return await store.events(session_id, limit=1000)


async def contents(store: Store, session_id: str) -> list[str]:
    return [event.content for event in await stored(store, session_id)]


# Opening


async def test_it_answers(store: Store) -> None:
    """A store that was just opened is healthy."""
    await store.ping()


async def test_the_first_opening_makes_a_row(store: Store) -> None:
    """A new session is at epoch 1 and knows only who, when and where; it reads back as it was returned."""
    session_id, user_id = fresh("s"), fresh("u")
    opened = await store.open_session(session_id, user_id, at=DAWN, container_id="box-1")
    assert opened == Session(session_id=session_id, user_id=user_id, epoch=1, start_time=DAWN, container_id="box-1")
    assert await store.session(session_id) == opened


async def test_reopening_raises_the_epoch_and_clears_the_end(store: Store) -> None:
    """Reopening keeps the start and the mode, and clears the end, the duration and the summary."""
    first = await an_open_session(store)
    await store.set_modes({first.session_id: "casual"})
    await store.finish_session(first.session_id, 1, ended_at=DAWN + MINUTE, summary="All said.")
    again = await store.open_session(first.session_id, first.user_id, at=DAWN + 2 * MINUTE, container_id="box-2")
    assert again == Session(
        session_id=first.session_id,
        user_id=first.user_id,
        epoch=2,
        start_time=DAWN,
        mode="casual",
        container_id="box-2",
        input_tokens=0,
        output_tokens=0,
    )
    assert await store.session(first.session_id) == again


async def test_another_users_session_is_not_opened(store: Store) -> None:
    """It raises, and the row is as it was."""
    first = await an_open_session(store)
    await store.finish_session(first.session_id, 1, ended_at=DAWN + MINUTE, summary="All said.")
    before = await store.session(first.session_id)
    with pytest.raises(NotYours):
        await store.open_session(first.session_id, fresh("u"), at=DAWN, container_id="box-2")
    assert await store.session(first.session_id) == before


async def test_openings_at_once_have_epochs_of_their_own(store: Store) -> None:
    """No two openings of a session share an epoch, however close they are."""
    session_id, user_id = fresh("s"), fresh("u")
    opened = await asyncio.gather(
        *(store.open_session(session_id, user_id, at=DAWN, container_id=f"box-{n}") for n in range(20))
    )
    assert sorted(session.epoch for session in opened) == list(range(1, 21))


async def test_an_unknown_session(store: Store) -> None:
    """There is no row, and there are no events."""
    assert await store.session(fresh("s")) is None
    assert await store.events(fresh("s"), limit=10) == []
    assert await store.latest_events(fresh("s"), limit=10) == []


async def test_modes_are_set_and_unknown_ids_passed_over(store: Store) -> None:
    """Each session gets its own mode; an unknown id fails nothing and creates no row."""
    one, two, nobody = await an_open_session(store), await an_open_session(store), fresh("s")
    await store.set_modes({one.session_id: "casual", nobody: "casual", two.session_id: "analytical"})
    rows = [await store.session(each.session_id) for each in (one, two)]
    assert [row and row.mode for row in rows] == ["casual", "analytical"]
    assert await store.session(nobody) is None
    await store.set_modes({})


@pytest.mark.parametrize("mode", ["support", "out_of_hours-2", "m" * 32])
async def test_a_mode_may_have_any_name(store: Store, mode: str) -> None:
    """Mode names come from the prompts file; each comes back as it was set, even after a reopening."""
    session = await an_open_session(store)
    await store.set_modes({session.session_id: mode})
    again = await store.open_session(session.session_id, session.user_id, at=DAWN + MINUTE, container_id="box-2")
    assert again.mode == mode


# Events


async def test_an_event_comes_back_as_it_was(store: Store) -> None:
    """Every field, to the microsecond, under an id of the store's own."""
    session = await an_open_session(store)
    event = an_event(
        session.session_id,
        "Größe: 你好 👩‍👩‍👧 \u202e \t\n\\ \" ' %s",
        role="tool",
        metadata={"kind": "call", "arguments": {"a": [1, 2.5, None, True, {"ü": "👍"}]}, "big": 2**53},
    )
    await store.append([event])
    (back,) = await stored(store, session.session_id)
    assert back.id > 0
    assert back == Event(**{name: getattr(event, name) for name in event.__struct_fields__} | {"id": back.id})


async def test_times_come_back_aware_and_equal(store: Store) -> None:
    """A time is the same instant whichever UTC offset it was given in."""
    elsewhere = DAWN.astimezone(ELSEWHERE)
    session = await an_open_session(store, at=elsewhere)
    await store.append([an_event(session.session_id, timestamp=elsewhere)])
    await store.finish_session(session.session_id, 1, ended_at=elsewhere + MINUTE, summary="")
    (event,), row = await stored(store, session.session_id), await store.session(session.session_id)
    assert row
    assert row.end_time
    assert (session.start_time, event.timestamp, row.start_time, row.end_time) == (DAWN, DAWN, DAWN, DAWN + MINUTE)
    assert all(moment.tzinfo for moment in (session.start_time, event.timestamp, row.start_time, row.end_time))


async def test_long_content_is_kept_whole(store: Store) -> None:
    """A text of a hundred kilobytes is stored like any other."""
    session = await an_open_session(store)
    content = "naïve 👍 " * 10_000
    await store.append([an_event(session.session_id, content)])
    assert await contents(store, session.session_id) == [content]


async def test_a_nul_is_kept_as_a_replacement_character(store: Store) -> None:
    """PostgreSQL holds no U+0000, in text or in JSON: every backend keeps U+FFFD in its place, and nothing is lost."""
    session = await an_open_session(store)
    await store.append([an_event(session.session_id, "a\0b", metadata={"x\0": ["\0", {"y": "c\0d"}], "n": 0})])
    (event,) = await stored(store, session.session_id)
    assert event.content == "a\ufffdb"
    assert event.metadata == {"x\ufffd": ["\ufffd", {"y": "c\ufffdd"}], "n": 0}
    await store.finish_session(session.session_id, 1, ended_at=DAWN, summary="\0")
    row = await store.session(session.session_id)
    assert row
    assert row.final_summary == "\ufffd"


async def test_appending_again_changes_nothing(store: Store) -> None:
    """An event whose id is stored is passed over, alone or among new ones, even if its content differs."""
    session = await an_open_session(store)
    one, two, three, four = (an_event(session.session_id, text) for text in ("one", "two", "three", "four"))
    await store.append([one, two])
    await store.append([one, two])
    changed = an_event(session.session_id, "changed", event_id=two.event_id)
    await store.append([changed, three, one, three, four])
    assert await contents(store, session.session_id) == ["one", "two", "three", "four"]


async def test_order_is_the_order_of_appending(store: Store) -> None:
    """Within a batch and between batches, whatever the timestamps say; ids rise."""
    session = await an_open_session(store)
    for batch in range(3):
        moments = [DAWN - timedelta(seconds=10 * batch + n) for n in range(50)]
        await store.append(
            [an_event(session.session_id, f"{batch}/{n}", timestamp=moment) for n, moment in enumerate(moments)]
        )
    events = await stored(store, session.session_id)
    assert [event.content for event in events] == [f"{batch}/{n}" for batch in range(3) for n in range(50)]
    ids = [event.id for event in events]
    assert ids == sorted(set(ids))


async def test_nothing_to_append(store: Store) -> None:
    """An empty batch is no error."""
    await store.append([])


async def test_events_are_read_in_pages(store: Store) -> None:
    """`after` is exclusive and `limit` the most, so that asking with the last id walks through all, once."""
    session = await an_open_session(store)
    await store.append([an_event(session.session_id, str(n)) for n in range(7)])
    pages: list[list[str]] = []
    after = 0
    while page := await store.events(session.session_id, after=after, limit=3):
        pages.append([event.content for event in page])
        assert page[-1].id > after, "the walk does not get on"
        after = page[-1].id
    assert pages == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


async def test_the_latest_events(store: Store) -> None:
    """The last ones, oldest first."""
    session = await an_open_session(store)
    await store.append([an_event(session.session_id, str(n)) for n in range(5)])
    latest = await store.latest_events(session.session_id, limit=2)
    assert [event.content for event in latest] == ["3", "4"]
    assert latest == (await stored(store, session.session_id))[-2:]
    assert await store.latest_events(session.session_id, limit=100) == await stored(store, session.session_id)


async def test_the_events_before_one(store: Store) -> None:
    """The last ones before it, oldest first; none before the first, an unknown one or one of another session."""
    session, other = await an_open_session(store), await an_open_session(store)
    await store.append([an_event(session.session_id, str(n)) for n in range(5)])
    await store.append([theirs := an_event(other.session_id)])
    events = await stored(store, session.session_id)
    assert await store.events_before(session.session_id, events[4].event_id, limit=2) == events[2:4]
    assert await store.events_before(session.session_id, events[2].event_id, limit=100) == events[:2]
    for unknown in (events[0].event_id, theirs.event_id, str(uuid4())):
        assert await store.events_before(session.session_id, unknown, limit=100) == []


async def test_a_transcript_is_the_session_and_its_first_events(store: Store) -> None:
    """The row and the events are as the single verbs give them, in order, up to the limit."""
    session, empty = await an_open_session(store), await an_open_session(store)
    await store.append([an_event(session.session_id, str(n)) for n in range(7)])
    await store.set_modes({session.session_id: "casual"})
    row = await store.session(session.session_id)
    assert row
    assert await store.transcript(session.session_id, limit=100) == (row, await stored(store, session.session_id))
    assert await store.transcript(session.session_id, limit=3) == (row, (await stored(store, session.session_id))[:3])
    assert await store.transcript(empty.session_id, limit=100) == (empty, [])
    assert await store.transcript(fresh("s"), limit=100) is None


async def test_sessions_do_not_mix(store: Store) -> None:
    """Events of a batch go each to its own session."""
    one, two = await an_open_session(store), await an_open_session(store)
    ids = [one.session_id, two.session_id, one.session_id]
    await store.append([an_event(session_id, str(n)) for n, session_id in enumerate(ids)])
    assert await contents(store, one.session_id) == ["0", "2"]
    assert [event.content for event in await store.latest_events(two.session_id, limit=9)] == ["1"]


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_an_event_of_no_session_is_refused_with_its_batch(store: Store, position: int) -> None:
    """It is refused, not unavailable, and nothing of the batch is stored, so that it can be halved."""
    session = await an_open_session(store)
    batch = [an_event(session.session_id, "good"), an_event(session.session_id, "good, too")]
    batch.insert(position, an_event(fresh("s"), "of nobody"))
    with pytest.raises(StoreRefused):
        await store.append(batch)
    assert await contents(store, session.session_id) == []
    batch.pop(position)
    await store.append(batch)
    assert await contents(store, session.session_id) == ["good", "good, too"]


async def test_half_a_character_is_refused(store: Store) -> None:
    """What no UTF-8 can carry is refused for good, with its batch, and harms nothing else."""
    session = await an_open_session(store)
    with pytest.raises(StoreRefused):
        await store.append([an_event(session.session_id, "good"), an_event(session.session_id, "\ud83d")])
    await store.append([an_event(session.session_id, "after")])
    assert await contents(store, session.session_id) == ["after"]


# Ending


async def test_the_end_is_written_once(store: Store) -> None:
    """End, duration and summary are there; the same call again changes nothing and says so."""
    session = await an_open_session(store)
    ended_at = DAWN + timedelta(minutes=1, seconds=30, milliseconds=250)
    assert await store.finish_session(session.session_id, 1, ended_at=ended_at, summary="All said.") is True
    finished = Session(
        session_id=session.session_id,
        user_id=session.user_id,
        epoch=1,
        start_time=DAWN,
        end_time=ended_at,
        duration=90,
        final_summary="All said.",
        container_id="box-1",
        input_tokens=0,
        output_tokens=0,
    )
    assert await store.session(session.session_id) == finished
    later = ended_at + MINUTE
    assert await store.finish_session(session.session_id, 1, ended_at=later, summary="Again.") is False
    assert await store.session(session.session_id) == finished


async def test_the_end_counts_the_tokens(store: Store) -> None:
    """And the cost: those of every turn's last event, whatever else stands where a usage should."""
    session = await an_open_session(store)
    usages: list[Any] = [
        {"input_tokens": 30, "output_tokens": 7, "cost": 0.25},
        {"input_tokens": 5, "output_tokens": 1, "cost": 0.5},
        {"input_tokens": 12, "output_tokens": 5},
        "odd",
        {},
        None,
    ]
    events = [
        an_event(session.session_id, role="assistant", metadata={"reason": "complete", "usage": usage})
        for usage in usages
    ]
    await store.append([*events, an_event(session.session_id)])
    last = max(event.timestamp for event in events) + MINUTE
    assert await store.finish_session(session.session_id, 1, ended_at=last, summary="All said.")
    row = await store.session(session.session_id)
    assert row
    assert (row.input_tokens, row.output_tokens, row.cost) == (47, 13, 0.75)


async def test_a_users_sessions_are_listed_newest_first(store: Store) -> None:
    """Page by page, each with the number of the user's messages; nobody else's are among them."""
    user_id, other = fresh("u"), fresh("u")
    mine = []
    for minute in range(5):
        at = DAWN + minute * MINUTE
        row = await store.open_session(fresh("s"), user_id, at=at, container_id="box-1")
        await store.append([an_event(row.session_id) for _ in range(minute)])
        await store.append([an_event(row.session_id, role="assistant")])
        mine.append(row.session_id)
    theirs = await store.open_session(fresh("s"), other, at=DAWN, container_id="box-1")
    first = await store.list_sessions(user_id, before=None, limit=3)
    assert [(each.session_id, each.messages) for each in first] == list(zip(mine[:1:-1], (4, 3, 2), strict=True))
    rest = await store.list_sessions(user_id, before=first[-1].session_id, limit=3)
    assert [each.session_id for each in rest] == mine[1::-1]
    assert await store.list_sessions(user_id, before=theirs.session_id, limit=3) == []
    assert await store.list_sessions(user_id, before="nobody", limit=3) == []
    assert await store.list_sessions(fresh("u"), before=None, limit=3) == []


async def test_sessions_of_one_moment_are_all_listed(store: Store) -> None:
    """None is on two pages, and none on none."""
    user_id = fresh("u")
    ids = {(await store.open_session(fresh("s"), user_id, at=DAWN, container_id="b")).session_id for _ in range(5)}
    seen: list[str] = []
    while page := await store.list_sessions(user_id, before=seen[-1] if seen else None, limit=2):
        seen += [each.session_id for each in page]
    assert (len(seen), set(seen)) == (5, ids)


async def test_a_listed_session_says_how_it_went(store: Store) -> None:
    """Its times, mode, title and summary."""
    session = await an_open_session(store)
    await store.set_modes({session.session_id: "casual"})
    assert await store.set_title(session.session_id, session.user_id, "About cats\0 🐈")
    await store.finish_session(session.session_id, 1, ended_at=DAWN + MINUTE, summary="All said.")
    assert await store.list_sessions(session.user_id, before=None, limit=9) == [
        SessionListed(
            session_id=session.session_id,
            start_time=DAWN,
            end_time=DAWN + MINUTE,
            duration=60,
            mode="casual",
            title="About cats\ufffd 🐈",
            final_summary="All said.",
            messages=0,
        )
    ]


async def test_nobody_else_names_or_removes_a_session(store: Store) -> None:
    """Only its user does; then it is gone with its events, and may be begun anew."""
    session = await an_open_session(store)
    await store.append([an_event(session.session_id)])
    for user_id in (fresh("u"), ""):
        assert not await store.set_title(session.session_id, user_id, "Mine")
        assert not await store.delete_session(session.session_id, user_id)
    assert await store.session(session.session_id) == session
    assert await store.delete_session(session.session_id, session.user_id)
    assert not await store.delete_session(session.session_id, session.user_id)
    assert await store.session(session.session_id) is None
    assert await store.events(session.session_id, limit=9) == []
    anew = await store.open_session(session.session_id, fresh("u"), at=DAWN, container_id="box-1")
    assert anew.epoch == 1


async def test_old_sessions_are_removed(store: Store) -> None:
    """Those that ended before a moment, so many at once; open and later ones stay."""
    long_ago = datetime(1999, 1, 1, tzinfo=UTC)
    old, later, still_open = [await an_open_session(store) for _ in range(3)]
    for session, end in ((old, long_ago), (later, long_ago + 2 * MINUTE)):
        await store.finish_session(session.session_id, 1, ended_at=end, summary="x")
    assert await store.delete_before(long_ago + MINUTE, limit=9) == 1
    assert await store.session(old.session_id) is None
    assert await store.session(later.session_id)
    assert await store.session(still_open.session_id)
    assert await store.delete_before(long_ago + MINUTE, limit=9) == 0
    await store.delete_session(later.session_id, later.user_id)


async def test_a_users_tokens_of_a_day(store: Store) -> None:
    """In and out, of the turns that ended since then in all their sessions, whatever else is there."""
    user_id = fresh("u")
    before, since = DAWN, DAWN + MINUTE
    rows = [await store.open_session(fresh("s"), user_id, at=DAWN, container_id="box-1") for _ in range(2)]
    other = await an_open_session(store)
    usages: list[Any] = [{"input_tokens": 30, "output_tokens": 7}, "odd", None, {}]
    for session_id in (rows[0].session_id, rows[1].session_id, other.session_id):
        await store.append(
            [
                an_event(session_id, role="assistant", timestamp=at, metadata={"usage": usage})
                for at in (before, since)
                for usage in usages
            ]
        )
    assert await store.user_tokens(user_id, since=since) == 2 * 37
    assert await store.user_tokens(user_id, since=before) == 4 * 37
    assert await store.user_tokens(fresh("u"), since=before) == 0


@pytest.mark.parametrize("epoch", [0, 1, 3])
async def test_an_end_of_another_epoch_changes_nothing(store: Store, epoch: int) -> None:
    """An end with an epoch other than the session's is too late, or too early."""
    first = await an_open_session(store)
    again = await store.open_session(first.session_id, first.user_id, at=DAWN, container_id="box-2")
    assert await store.finish_session(first.session_id, epoch, ended_at=DAWN, summary="Stale.") is False
    assert await store.session(first.session_id) == again
    assert await store.finish_session(first.session_id, 2, ended_at=DAWN, summary="Now.") is True


async def test_ends_at_once_are_one(store: Store) -> None:
    """Of many calls at the same time, one ends the session."""
    session = await an_open_session(store)
    ends = (store.finish_session(session.session_id, 1, ended_at=DAWN, summary=str(n)) for n in range(10))
    assert sorted(await asyncio.gather(*ends)) == [False] * 9 + [True]


async def test_a_late_event_opens_an_ended_session_again(store: Store) -> None:
    """Its end and summary are gone, its epoch is the same; and it can be ended once more, now with the event."""
    late, other = await an_open_session(store), await an_open_session(store)
    for session in (late, other):
        await store.finish_session(session.session_id, 1, ended_at=DAWN + MINUTE, summary="Not whole.")
    event = an_event(late.session_id, timestamp=DAWN + 2 * MINUTE)
    await store.append([event, an_event(other.session_id, timestamp=DAWN + MINUTE)])
    assert await store.session(late.session_id) == structs.replace(late, input_tokens=0, output_tokens=0)
    unchanged = await store.session(other.session_id)
    assert unchanged
    assert unchanged.final_summary == "Not whole."
    assert await store.finish_session(late.session_id, 1, ended_at=DAWN + 2 * MINUTE, summary="Whole.") is True
    await store.append([event])
    finished = await store.session(late.session_id)
    assert finished
    assert (finished.epoch, finished.duration, finished.final_summary) == (1, 120, "Whole.")


async def test_a_session_does_not_end_before_an_event(store: Store) -> None:
    """A summary that does not know the last event is too early, and its writer is told so."""
    session = await an_open_session(store)
    await store.append([an_event(session.session_id, timestamp=DAWN + 2 * MINUTE)])
    assert await store.finish_session(session.session_id, 1, ended_at=DAWN + MINUTE, summary="Not whole.") is False
    assert await store.session(session.session_id) == session


async def test_an_unknown_session_does_not_end(store: Store) -> None:
    """Ending an unknown session does nothing, and creates nothing."""
    session_id = fresh("s")
    assert await store.finish_session(session_id, 1, ended_at=DAWN, summary="") is False
    assert await store.session(session_id) is None


@pytest.mark.parametrize(
    ("after", "duration"),
    [
        (timedelta(seconds=-30), 0),
        (timedelta(0), 0),
        (timedelta(milliseconds=100), 0),
        (timedelta(hours=30), 108_000),
    ],
)
async def test_the_duration_is_whole_seconds_and_never_negative(store: Store, after: timedelta, duration: int) -> None:
    """Even where the clocks of two machines disagree."""
    session = await an_open_session(store)
    assert await store.finish_session(session.session_id, 1, ended_at=DAWN + after, summary="")
    row = await store.session(session.session_id)
    assert row
    assert (row.duration, type(row.duration)) == (duration, int)
    assert row.end_time == DAWN + after


async def test_the_duration_counts_from_the_first_opening(store: Store) -> None:
    """A session that was left and taken up again lasted from its first start to its last end."""
    first = await an_open_session(store)
    await store.finish_session(first.session_id, 1, ended_at=DAWN + MINUTE, summary="")
    await store.open_session(first.session_id, first.user_id, at=DAWN + 5 * MINUTE, container_id="box-1")
    await store.finish_session(first.session_id, 2, ended_at=DAWN + 7 * MINUTE, summary="")
    row = await store.session(first.session_id)
    assert row
    assert row.duration == 420


async def test_a_summary_may_be_improved(store: Store) -> None:
    """A summary is improved once: only where the session has ended, at this epoch, with this summary."""
    session = await an_open_session(store)
    ids = session.session_id, session.epoch
    assert await store.improve_summary(*ids, old="Plain.", new="Better.") is False, "it has not ended"
    await store.finish_session(*ids, ended_at=DAWN + MINUTE, summary="Plain.")
    before = await store.session(session.session_id)
    assert before
    assert await store.improve_summary(session.session_id, 2, old="Plain.", new="Better.") is False
    assert await store.improve_summary(*ids, old="Other.", new="Better.") is False
    assert await store.session(session.session_id) == before
    assert await store.improve_summary(*ids, old="Plain.", new="Better\0.") is True
    assert await store.improve_summary(*ids, old="Plain.", new="Best.") is False
    after = await store.session(session.session_id)
    assert after == msgspec.structs.replace(before, final_summary="Better\ufffd.")


# Containers, and what they leave behind


LONG_AGO = datetime(1900, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
"""Older than whatever others leave in a store that is shared, so that ours come first."""


async def opened_in(store: Store, container_id: str, at: datetime = LONG_AGO) -> Session:
    return await store.open_session(fresh("s"), fresh("u"), at=at, container_id=container_id)


async def orphans_among(store: Store, *ours: Session, seen_before: datetime = DAWN) -> list[Orphan]:
    ids = {session.session_id for session in ours}
    found = await store.orphans(seen_before=seen_before, limit=100)
    return [orphan for orphan in found if orphan.session_id in ids]


def orphaned(session: Session, last_time: datetime) -> Orphan:
    return Orphan(session_id=session.session_id, epoch=session.epoch, last_time=last_time)


async def end(store: Store, *ours: Session) -> None:
    """Leave no orphans to others."""
    for session in ours:
        await store.finish_session(session.session_id, session.epoch, ended_at=LONG_AGO, summary="")


async def test_what_was_announced_is_not_due_at_once(store: Store) -> None:
    """A session just announced is not due again, for container or sweep; a reopening or late event starts over."""
    box = fresh("box")
    session, other = sorted([await opened_in(store, box), await opened_in(store, box)], key=lambda it: it.session_id)
    found = await orphans_among(store, session, other)
    assert await store.note_announced(found[:1]) == []
    assert await orphans_among(store, session, other) == found[1:]
    assert await store.open_sessions(box, limit=10) == found[1:]
    assert await store.note_announced([msgspec.structs.replace(found[1], epoch=2)]) == []
    assert await orphans_among(store, session, other) == found[1:]
    again = await store.open_session(found[0].session_id, session.user_id, at=LONG_AGO, container_id=box)
    assert len(await store.open_sessions(box, limit=10)) == 2
    await store.note_announced([orphaned(again, LONG_AGO)])
    await store.finish_session(again.session_id, again.epoch, ended_at=LONG_AGO, summary="")
    await store.append([an_event(again.session_id, timestamp=LONG_AGO + MINUTE)])
    assert len(await store.open_sessions(box, limit=10)) == 2
    await end(store, other)
    await store.finish_session(again.session_id, again.epoch, ended_at=LONG_AGO + MINUTE, summary="")


async def test_nobody_is_announced_for_ever(store: Store) -> None:
    """The last attempt says that it is the last."""
    session = await opened_in(store, fresh("box"))
    (orphan,) = await orphans_among(store, session)
    noted = [await store.note_announced([orphan]) for _ in range(MOST_ANNOUNCEMENTS)]
    assert noted == [[]] * (MOST_ANNOUNCEMENTS - 1) + [[session.session_id]]
    assert await orphans_among(store, session) == []
    await end(store, session)


async def test_a_container_is_dead_when_it_was_not_seen_since(store: Store) -> None:
    """A container seen at exactly the limit lives, a microsecond earlier it does not; its next beat revives it."""
    box = fresh("box")
    session = await opened_in(store, box)
    await store.beat(box, at=DAWN.astimezone(ELSEWHERE))
    assert await orphans_among(store, session, seen_before=DAWN) == []
    later = DAWN + timedelta(microseconds=1)
    assert await orphans_among(store, session, seen_before=later.astimezone(ELSEWHERE)) == [orphaned(session, LONG_AGO)]
    await store.beat(box, at=later)
    assert await orphans_among(store, session, seen_before=later) == []
    await store.depart(box)
    await end(store, session)


async def test_what_a_departed_container_left_open_is_orphaned(store: Store) -> None:
    """A container that departs is dead at once; departing twice, or without ever arriving, is no error."""
    box, other = fresh("box"), fresh("box")
    left, kept, never = await opened_in(store, box), await opened_in(store, other), await opened_in(store, fresh("box"))
    for container_id in (box, other):
        await store.beat(container_id, at=DAWN)
    assert await orphans_among(store, left, kept, never) == [orphaned(never, LONG_AGO)]
    for _ in range(2):
        await store.depart(box)
    assert {each.session_id for each in await orphans_among(store, left, kept, never)} == {
        left.session_id,
        never.session_id,
    }
    await store.depart(other)
    await end(store, left, kept, never)


async def test_an_ended_session_is_nobodys_orphan(store: Store) -> None:
    """An ended session is no orphan, nor is one that a living container has reopened."""
    box, alive = fresh("box"), fresh("box")
    await store.beat(alive, at=DAWN)
    ended, reopened = await opened_in(store, box), await opened_in(store, box)
    await end(store, ended)
    again = await store.open_session(reopened.session_id, reopened.user_id, at=DAWN, container_id=alive)
    assert await orphans_among(store, ended, reopened) == []
    await store.depart(alive)
    assert await orphans_among(store, ended, reopened) == [orphaned(again, LONG_AGO)]
    await end(store, again)


async def test_orphans_tell_their_last_time_and_the_oldest_comes_first(store: Store) -> None:
    """An orphan was last heard of at its last stored event, or at its start; no more come than were asked for."""
    box = fresh("box")
    silent, long, short = [await opened_in(store, box, LONG_AGO + n * MINUTE) for n in (3, 1, 2)]
    await store.append(
        [
            an_event(short.session_id, timestamp=LONG_AGO + 9 * MINUTE),
            an_event(short.session_id, role="assistant", timestamp=(LONG_AGO + 2 * MINUTE).astimezone(ELSEWHERE)),
            an_event(long.session_id, timestamp=LONG_AGO + 4 * MINUTE),
        ]
    )
    assert await orphans_among(store, silent, long, short) == [
        orphaned(short, LONG_AGO + 2 * MINUTE),
        orphaned(silent, LONG_AGO + 3 * MINUTE),
        orphaned(long, LONG_AGO + 4 * MINUTE),
    ]
    assert len(await store.orphans(seen_before=DAWN, limit=2)) == 2
    await end(store, silent, long, short)


# Figures


async def test_the_figures_of_a_user(store: Store) -> None:
    """A user's stats: sessions, own messages, minutes to the last end or event, and when last seen."""
    user_id = fresh("u")
    ended, running = [await an_open_session(store, user_id) for _ in range(2)]
    await store.append(
        [
            an_event(ended.session_id, timestamp=DAWN + MINUTE),
            an_event(ended.session_id, role="assistant", timestamp=DAWN + MINUTE),
            an_event(running.session_id, timestamp=DAWN + MINUTE),
            an_event(running.session_id, role="tool", timestamp=DAWN + 2 * MINUTE),
            an_event(running.session_id, timestamp=(DAWN + 3 * MINUTE).astimezone(ELSEWHERE)),
        ]
    )
    await store.finish_session(ended.session_id, 1, ended_at=DAWN + timedelta(seconds=90), summary="")
    await store.append([an_event((await an_open_session(store)).session_id)])
    last_seen = DAWN + 3 * MINUTE
    assert await store.user_stats(user_id) == UserStats(sessions=2, messages=3, minutes=4.5, last_seen=last_seen)


async def test_figures_are_made_of_the_latest_sessions(store: Store) -> None:
    """Reading them takes bounded work, however many sessions a user such as `anonymous` has had."""
    user_id = fresh("u")
    await asyncio.gather(*(an_open_session(store, user_id) for _ in range(MOST_COUNTED + 5)))
    assert (await store.user_stats(user_id)).sessions == MOST_COUNTED


async def test_the_figures_of_one_who_said_nothing(store: Store) -> None:
    """One session, no time spent, seen when it was opened."""
    session = await an_open_session(store)
    assert await store.user_stats(session.user_id) == UserStats(sessions=1, messages=0, minutes=0.0, last_seen=DAWN)


async def test_the_figures_of_an_unknown_user(store: Store) -> None:
    """Zeros, and None."""
    assert await store.user_stats(fresh("u")) == UserStats(sessions=0, messages=0, minutes=0.0, last_seen=None)


async def test_the_open_sessions_of_one_container(store: Store) -> None:
    """A container's open sessions: only its own, the longest silent first, no more than asked for."""
    box = fresh("box")
    silent, ended, spoken = [await opened_in(store, box) for _ in range(3)]
    other = await opened_in(store, fresh("box"))
    await store.append([an_event(spoken.session_id, timestamp=LONG_AGO + MINUTE)])
    await end(store, ended)
    expected = [orphaned(silent, LONG_AGO), orphaned(spoken, LONG_AGO + MINUTE)]
    assert await store.open_sessions(box, limit=10) == expected
    assert await store.open_sessions(box, limit=1) == expected[:1]
    assert await store.open_sessions(fresh("box"), limit=10) == []
    await end(store, silent, spoken, other)


def test_the_kinds_of_failure_can_be_told_apart() -> None:
    """Each error is a `StoreError`, and no two are related."""
    kinds = StoreError.__subclasses__()
    assert {kind.__name__ for kind in kinds} == {"StoreUnavailable", "StoreRefused", "StoreMisconfigured", "NotYours"}

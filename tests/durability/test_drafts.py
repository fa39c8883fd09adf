"""The words of running replies on the disk: written together and seldom, and gone once they are stored."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chat.conversation.draft import Draft
from chat.durability.drafts import Drafts
from chat.durability.journal import Journal
from chat.durability.spool import Spool
from chat.metrics import Metrics
from infra.records import Event
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.support.flaky import FlakyStore
from tests.support.spooled import spooled, until

DAWN = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


class Speaker:
    """A session that says what it is given."""

    def __init__(self, session_id: str = "s") -> None:
        self.session_id = session_id
        self.said: list[str] = []

    def draft(self) -> Draft | None:
        """See `chat.durability.drafts.Speaker`."""
        text, self.said = "".join(self.said), []
        return Draft(self.session_id, "t", 0, text, DAWN) if text else None


def an_event(session_id: str = "s", role: str = "assistant", content: str = "Hello", **metadata: str) -> Event:
    return Event(
        event_id=f"{session_id}-{role}",
        session_id=session_id,
        turn_id="t",
        role=role,  # type: ignore[arg-type]
        content=content,
        timestamp=DAWN,
        metadata=metadata,
    )


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """The process's spool."""
    spool = await Spool.open(tmp_path)
    yield spool
    await spool.close()


async def recovered(spool: Spool) -> Drafts:
    """The drafts as a process finds them at its start."""
    drafts = Drafts(spool, Metrics())
    await drafts.recover()
    return drafts


def say(drafts: Drafts, speaker: Speaker, *words: str) -> None:
    """Have the speaker say these, and what was said so far written."""
    for word in words:
        speaker.said.append(word)
        drafts.speaks(speaker)
    drafts.write()


async def test_words_are_written_once_for_all_that_came_together(spool: Spool, tmp_path: Path) -> None:
    """A row for each session that has spoken since, whatever the number of its tokens; none for one that has not."""
    drafts, ann, bob = await recovered(spool), Speaker("a"), Speaker("b")
    say(drafts, ann, "Hel", "lo", ", ")
    drafts.speaks(bob)  # but has recorded its words meanwhile
    say(drafts, ann, "you", "!")
    assert [b"Hello, " in row or b"you!" in row for row in spooled(tmp_path, "drafts")] == [True, True]


async def test_words_stay_until_their_event_is_stored(spool: Spool, tmp_path: Path) -> None:
    """Recorded is not stored; and what is said after it stays."""
    drafts, ann = await recovered(spool), Speaker()
    say(drafts, ann, "Hello")
    drafts.recorded(an_event())
    say(drafts, ann, "more")
    assert len(spooled(tmp_path, "drafts")) == 2
    drafts.stored(an_event())
    (row,) = spooled(tmp_path, "drafts")
    assert b"more" in row


async def test_what_is_left_is_there_until_it_is_settled(spool: Spool, tmp_path: Path) -> None:
    """The next process finds the words in their order, adds its own behind them, and lets go of them when told."""
    first, ann = await recovered(spool), Speaker()
    say(first, ann, "Hel")
    say(first, ann, "lo")
    second = await recovered(spool)
    say(second, Speaker("other"), "words")
    assert list(second.left()) == ["s"]
    (event,) = second.interruptions("s", [an_event(role="user")])
    assert event.content == "Hello"
    second.settled("s")
    assert list(second.left()) == []
    (row,) = spooled(tmp_path, "drafts")
    assert b"words" in row


async def test_a_journal_stores_what_was_left_once_the_store_answers(spool: Spool, tmp_path: Path) -> None:
    """By itself, also where nobody comes back; who opens the session waits for it; and the log says why it is late."""
    store = FlakyStore(await SqliteStore.open(tmp_path / "realtime.db"))
    await store.open_session("s", "u", at=DAWN, container_id="c")
    await store.append([an_event(role="user", content="hi")])
    say(await recovered(spool), Speaker(), "Hel", "lo")
    store.weather.extend([StoreUnavailable("it rains")] * 2)
    journal = Journal(store, Metrics(), max_events=10, drafts=await recovered(spool))
    with capture_logs() as logs:
        journal.start()
        await until(lambda: spooled(tmp_path, "drafts") == [])
    await journal.caught_up("s")
    assert [event.content for event in await store.events("s", limit=10)] == ["hi", "Hello"]
    assert "interrupted replies not taken up, will retry" in [line["event"] for line in logs]
    assert await journal.close(within=1) == 0
    await store.close()


async def test_a_reply_that_is_stored_leaves_nothing(spool: Spool, tmp_path: Path) -> None:
    """The journal lets go of the words when the store has their event."""
    store = await SqliteStore.open(tmp_path / "realtime.db")
    await store.open_session("s", "u", at=DAWN, container_id="c")
    drafts = await recovered(spool)
    journal = Journal(store, Metrics(), max_events=10, drafts=drafts)
    journal.start()
    say(drafts, Speaker(), "Hello")
    journal.record(an_event(reason="complete"), 1, lambda through: None)
    await journal.settled()
    assert spooled(tmp_path, "drafts") == []
    await journal.close(within=1)
    await store.close()

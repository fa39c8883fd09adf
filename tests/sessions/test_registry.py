"""All live sessions: opened once however many ask, ended once, and announced only when the store has everything."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest
from structlog.testing import capture_logs

from chat.conversation.inputs import Unloaded, UserSaid
from chat.durability.courier import Courier
from chat.durability.journal import Journal
from chat.metrics import Metrics
from chat.protocol.frames import CloseCode, ErrorCode
from chat.sessions.door import Departure, Refused
from chat.sessions.kit import TurnKit
from chat.sessions.registry import Sessions
from chat.sessions.session import Session
from chat.tools.registry import Registry
from chat.web.admission import Admission
from chat.web.endpoint import SessionSocket
from chat.web.identity import Identities
from chat.web.limits import Limits
from chat.web.origins import Origins
from chat.web.quota import Quota
from infra.handoff import HandoffUnavailable
from infra.records import SessionEnded, utc_now
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.conftest import make_settings
from tests.sessions.test_session import PATIENCE, Client, turns_of_the_loop
from tests.support.flaky import FlakyStore
from tests.support.prompts import STANDARD
from tests.support.scrape import Scrape
from tests.support.scripted import Pause, ScriptedModel
from tests.support.spooled import until


class House:
    """The registry in its surroundings. `announced` is each end with what the store held at that moment."""

    def __init__(self, sqlite: SqliteStore, data_dir: Path) -> None:
        self.settings = make_settings(data_dir, linger_seconds=0.05)
        self.sqlite = sqlite
        self.store = FlakyStore(sqlite)
        self.model = ScriptedModel()
        self.metrics = Metrics()
        self.journal = Journal(self.store, self.metrics, max_events=100)
        self.endings = Courier("endings", self._announce, batch_size=9, expected=HandoffUnavailable)
        kit = TurnKit(self.model, Registry([]), PATIENCE, PATIENCE, max_tool_rounds=3, metrics=self.metrics)
        self.sessions = Sessions(self.store, self.journal, kit, STANDARD, self.endings, self.settings, "box")
        self.announced: list[tuple[SessionEnded, list[str]]] = []
        self.clients: list[Client] = []
        self._heard = asyncio.Event()

    async def _announce(self, endings: Sequence[SessionEnded]) -> Sequence[SessionEnded]:
        for ended in endings:
            stored = await self.sqlite.events(ended.session_id, limit=99)
            self.announced.append((ended, [event.content for event in stored]))
        self._heard.set()
        return ()

    def client(self) -> Client:
        """A new one."""
        self.clients.append(client := Client())
        return client

    def socket(self) -> SessionSocket:
        """The door to it, for whoever comes."""
        limits, quota = Limits(self.settings, self.metrics), Quota(self.store, self.metrics, 0)
        admission = Admission(Identities(None), Origins([]), limits, quota, self.sessions)
        return SessionSocket(self.sessions, self.journal, admission, self.settings.max_message_chars)

    async def attach(self, client: Client, session_id: str = "s", user_id: str = "u") -> Session:
        """See `Sessions.attach`."""
        async with asyncio.timeout(PATIENCE):
            return await self.sessions.attach(session_id, user_id, client.outbox)

    async def refusal(self, **ids: str) -> Refused:
        """Why a new client may not attach."""
        with pytest.raises(Refused) as refused:
            await self.attach(self.client(), **ids)
        return refused.value

    async def held_up(self, *attaching: Coroutine[Any, Any, Any]) -> tuple[Pause, list[asyncio.Task[Any]]]:
        """Have the store hold up what it is asked next, which these do, until the pause is set."""
        self.store.weather.append(gate := Pause())
        tasks = [asyncio.create_task(each) for each in attaching]
        await asyncio.wait_for(gate.reached.wait(), PATIENCE)
        return gate, tasks

    async def chat(self, client: Client, session: Session, *answer: Any) -> None:
        """Say "hi", and have some of the answer read and everything so far stored."""
        self.model.enqueue(*answer)
        session.dispatch(UserSaid("hi"))
        await client.hears("token")
        await asyncio.wait_for(self.journal.settled(), PATIENCE)

    async def leave_while_answered(self, waiting: asyncio.Event) -> None:
        """A client comes, hears half an answer, which waits for this then, and says goodbye."""
        session = await self.attach(client := self.client())
        await self.chat(client, session, "Hel", waiting)
        self.sessions.detach(session, client.outbox, Departure.GOODBYE)

    async def ended(self, count: int = 1) -> list[tuple[str, int, str]]:
        """Wait until so many ends are announced; which."""
        async with asyncio.timeout(PATIENCE):
            while len(self.announced) < count:
                self._heard.clear()
                await self._heard.wait()
        return [(ended.session_id, ended.epoch, ended.reason) for ended, _ in self.announced]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """An empty one."""
    built = House(await SqliteStore.open(tmp_path / "sessions.db"), tmp_path)
    built.journal.start()
    built.endings.start()
    yield built
    for closing in (built.sessions.close, built.journal.close, built.endings.close):
        await closing(within=0)
    for client in built.clients:
        await client.leave()
    await built.sqlite.close()


async def test_a_session_takes_one_place_and_never_two(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session counts once, even at the moment it opens, so the last place can be had."""
    monkeypatch.setattr(house.sessions, "_settings", house.settings.model_copy(update={"max_sessions": 2}))
    open_session = house.store.open_session
    coming: list[asyncio.Task[Session]] = []

    async def opening(session_id: str, user_id: str, **how: Any) -> Any:
        row = await open_session(session_id, user_id, **how)
        if session_id == "one":  # the next step of the loop is that of the other, before any callback of this one's
            coming.append(asyncio.create_task(house.attach(house.client(), "two")))
        return row

    monkeypatch.setattr(house.store, "open_session", opening)
    await house.attach(house.client(), "one")
    await coming[0]
    assert (await house.refusal(session_id="three")).code == ErrorCode.AT_CAPACITY


async def test_a_session_that_is_being_opened_takes_a_place(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that comes while the last place is being taken is told to come back."""
    monkeypatch.setattr(house.sessions, "_settings", house.settings.model_copy(update={"max_sessions": 2}))
    await house.attach(house.client(), "one")
    gate, (opening,) = await house.held_up(house.attach(house.client(), "two"))
    assert (await house.refusal(session_id="three")).code == ErrorCode.AT_CAPACITY
    gate.set()
    await opening


async def test_nothing_is_announced_or_opened_again_before_its_last_event_is_stored(house: House) -> None:
    """The summary and the next epoch are made of what is stored, so both wait for a write on its way."""
    await house.leave_while_answered(Pause())
    gate, _ = await house.held_up()
    coming = asyncio.create_task(house.attach(again := house.client()))
    await turns_of_the_loop()
    assert (house.announced, coming.done()) == ([], False)
    gate.set()
    assert await house.ended() == [("s", 1, "closed")]
    assert [stored for _, stored in house.announced] == [["hi", "Hel"]]
    assert (await coming).epoch == 2
    assert [event["content"] for event in (await again.hears("ready"))["history"]] == ["hi", "Hel"]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_session_waits_for_its_turn(house: House, monkeypatch: pytest.MonkeyPatch, stubborn: bool) -> None:
    """It is announced when its model call is closed; only one that will not close is not waited for for ever."""
    monkeypatch.setattr("chat.sessions.session.STOP_SECONDS", 0.01 if stubborn else PATIENCE)
    closing = Pause()

    class SlowToClose(asyncio.Event):
        async def wait(self) -> Literal[True]:
            try:
                return await super().wait()
            finally:
                await closing.wait()

    await house.leave_while_answered(SlowToClose())
    await asyncio.wait_for(closing.reached.wait(), PATIENCE)
    if not stubborn:
        await house.journal.settled()
        await turns_of_the_loop()
        assert house.announced == []
        closing.set()
    assert await house.ended() == [("s", 1, "closed")]
    closing.set()


async def test_a_session_whose_opener_vanished_is_ended(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose only client left while it was being opened is announced all the same."""
    gate, [opener] = await house.held_up(house.attach(house.client()))
    opener.cancel()
    monkeypatch.setattr("chat.sessions.registry.OPEN_SECONDS", 0.01)
    gate.set()
    assert await house.ended() == [("s", 1, "dropped")]


async def test_who_asked_first_may_vanish(house: House) -> None:
    """The opening goes on for the others who wait for it."""
    gate, [first, coming] = await house.held_up(house.attach(house.client()), house.attach(second := house.client()))
    first.cancel()
    gate.set()
    await house.chat(second, session := await coming, "Hello.")
    assert session.epoch == 1


async def test_who_finds_the_session_ended_opens_it_again(house: House) -> None:
    """Of two who waited for one opening the first may have come, left and ended it before the second goes on."""
    first, second = house.client(), house.client()

    async def come_and_go() -> None:
        house.sessions.detach(await house.attach(first), first.outbox, Departure.GOODBYE)

    _, session = await asyncio.gather(come_and_go(), house.attach(second))
    await house.chat(second, session, "Hello.")
    assert session.epoch == 2


async def test_an_intruder_who_asks_first_does_not_shut_the_owner_out(house: House) -> None:
    """Of two users who ask for a session at once, its owner gets it, whoever came first."""
    await house.sqlite.open_session("s", "u", at=utc_now(), container_id="box")
    refused, session = await asyncio.gather(house.refusal(user_id="x"), house.attach(house.client()))
    assert (refused.code, session.epoch) == (ErrorCode.NOT_YOUR_SESSION, 2)


@pytest.mark.parametrize("hangs", [False, True])
async def test_what_cannot_be_read_is_not_opened(house: House, monkeypatch: pytest.MonkeyPatch, hangs: bool) -> None:
    """The client is told to come back, and the epoch is not raised: given up, it would never be ended."""

    async def fail(*_: Any, **__: Any) -> NoReturn:
        if hangs:
            await asyncio.Event().wait()
        raise StoreUnavailable("it rains")

    await house.sqlite.open_session("s", "u", at=utc_now(), container_id="box")
    with monkeypatch.context() as patch:
        patch.setattr("chat.sessions.opening.OPEN_SECONDS", 0.01 if hangs else PATIENCE)
        patch.setattr(house.store, "latest_events", fail)
        refused = await house.refusal()
    assert (refused.code, refused.retry_after) == (ErrorCode.STORE_UNAVAILABLE, 2)
    assert (await house.attach(house.client())).epoch == 2


async def test_closing_ends_what_lives_and_gives_up_what_is_opening(house: House) -> None:
    """Every live session is announced, what was not open yet never will be, and nobody is let in any more."""
    await house.attach(house.client(), "two")
    await house.chat(client := house.client(), await house.attach(client, "one"), "Hel", Pause())
    _, [opening] = await house.held_up(house.attach(house.client(), "three"))
    await house.sessions.close(within=PATIENCE)
    await asyncio.wait([opening])
    assert opening.cancelled()
    assert await house.ended(2) == [("two", 1, "shutdown"), ("one", 1, "shutdown")]
    assert await house.sqlite.session("three") is None
    assert (await house.refusal()).code == ErrorCode.RESTARTING


async def test_closing_waits_only_so_long(house: House) -> None:
    """A store that hangs holds up nothing: what was not announced then is not, and the log says so."""
    await house.leave_while_answered(Pause())
    gate, _ = await house.held_up()
    with capture_logs() as logs:
        done, _ = await asyncio.wait([asyncio.create_task(house.sessions.close(within=0.01))], timeout=PATIENCE)
    gate.set()
    assert done
    assert [(line["event"], line["sessions"]) for line in logs] == [("ended sessions not announced", 1)]
    assert house.announced == []


async def test_who_does_not_read_is_not_listened_to(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its outbox full a client's frames stay where they are, until it reads; then all are taken."""
    monkeypatch.setattr("chat.sessions.outbox.SOFT_CHARS", 10)
    frames: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    reading = Pause()

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send":
            await reading.wait()

    for message in ({"type": "websocket.connect"}, *[{"type": "websocket.receive", "text": '{"type": "ping"}'}] * 5):
        frames.put_nowait(message)
    scope = {"path_params": {"session_id": "s"}, "query_string": b"user_id=u", "headers": [], "extensions": {}}
    serving = asyncio.create_task(house.socket()(scope, frames.get, send))
    await asyncio.wait_for(reading.reached.wait(), PATIENCE)
    await turns_of_the_loop()
    assert frames.qsize() == 4
    reading.set()
    frames.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await asyncio.wait_for(serving, PATIENCE)


@pytest.mark.parametrize(
    ("departure", "reason"),
    [(Departure.DROP, "dropped"), (Departure.GOING_AWAY, "closed"), (Departure.GOODBYE, "closed")],
)
async def test_how_its_client_left_is_why_a_session_ended(house: House, departure: Departure, reason: str) -> None:
    """A lost connection is told from a page that was closed."""
    session = await house.attach(client := house.client())
    house.sessions.detach(session, client.outbox, departure)
    assert await house.ended() == [("s", 1, reason)]


async def test_a_session_is_known_while_it_opens_and_lives(house: House) -> None:
    """And no more once it has left: whoever finds it open in the store then may announce it again."""
    assert not house.sessions.is_known("s")
    gate, (opening,) = await house.held_up(house.attach(client := house.client()))
    assert house.sessions.is_known("s")
    gate.set()
    session = await opening
    assert house.sessions.is_known("s")
    assert not house.sessions.is_known("another")
    house.sessions.detach(session, client.outbox, Departure.GOODBYE)
    await house.ended()
    await turns_of_the_loop()
    assert not house.sessions.is_known("s")


async def test_a_session_lives_while_one_client_is_left(house: House) -> None:
    """A goodbye is one client's own; only the last one's ends the session."""
    session = await house.attach(one := house.client())
    await house.attach(two := house.client())
    house.sessions.detach(session, one.outbox, Departure.GOODBYE)
    assert house.sessions.is_live("s")
    house.sessions.detach(session, two.outbox, Departure.GOODBYE)
    assert await house.ended() == [("s", 1, "closed")]


async def test_draining_lets_a_reply_end_and_sends_away_who_is_quiet(house: House) -> None:
    """A quiet session ends at once, the other with its reply, and both ends are announced before it returns."""
    quiet, busy, pause = house.client(), house.client(), Pause()
    await house.attach(quiet, "quiet")
    await house.chat(busy, await house.attach(busy, "busy"), "Hel", pause, "lo")
    draining = asyncio.create_task(house.sessions.drain(within=PATIENCE))
    await until(lambda: quiet.closed is not None)
    assert (quiet.closed, busy.closed) == (CloseCode.RESTARTING, None)
    assert (house.sessions.is_live("quiet"), house.sessions.is_live("busy")) == (False, True)
    assert house.sessions.is_draining()
    assert (await house.refusal()).code == ErrorCode.RESTARTING
    pause.set()
    await asyncio.wait_for(draining, PATIENCE)
    assert [(ended.session_id, ended.reason) for ended, _ in house.announced] == [
        ("quiet", "shutdown"),
        ("busy", "shutdown"),
    ]
    assert [done["reason"] for done in busy.all("done")] == ["complete"]
    await until(lambda: busy.closed is not None)
    assert busy.closed == CloseCode.RESTARTING


async def test_draining_stops_a_reply_when_the_time_is_over(house: House) -> None:
    """What it had said by then is stored, and its session ended."""
    await house.chat(client := house.client(), await house.attach(client), "Hel", Pause())
    await asyncio.wait_for(house.sessions.drain(within=0.01), PATIENCE)
    assert [(ended.reason, stored) for ended, stored in house.announced] == [("shutdown", ["hi", "Hel"])]
    assert [done["reason"] for done in client.all("done")] == ["cancelled"]


async def test_draining_waits_for_what_is_being_opened(house: House) -> None:
    """Its epoch is raised already in the store: left alone, it would stay open."""
    gate, [opening] = await house.held_up(house.attach(house.client()))
    draining = asyncio.create_task(house.sessions.drain(within=0))
    await turns_of_the_loop()
    assert not draining.done()
    gate.set()
    await asyncio.wait_for(draining, PATIENCE)
    await asyncio.wait([opening])
    assert await house.ended() == [("s", 1, "shutdown")]


async def test_a_reader_that_is_stuck_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that took nothing for `SLOW_READER_SECONDS` is closed; the one beside it stays."""
    monkeypatch.setattr("chat.sessions.watch.WATCH_SECONDS", 0.005)
    monkeypatch.setattr(house.sessions._watch, "_slow_reader_seconds", 0.02)
    await house.attach(slow := house.client())
    await house.attach(fast := house.client())
    await slow.hears("ready")
    slow.reading.clear()
    house.sessions.start()
    for client in (slow, fast):
        client.outbox.put('{"type": "more"}')
    await until(lambda: slow.dropped != [])
    assert slow.dropped == [CloseCode.SLOW_READER]
    assert fast.dropped == []


def short_of_memory(house: House, monkeypatch: pytest.MonkeyPatch, most_bytes: int) -> None:
    """Have the house watch its memory, of which it has so much."""
    monkeypatch.setattr("chat.sessions.watch.WATCH_SECONDS", 0.005)
    monkeypatch.setattr(house.sessions._watch, "_most_bytes", most_bytes)
    house.sessions.start()


async def test_past_its_memory_the_least_used_session_is_unloaded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again from the store when somebody speaks or comes back, and has lost nothing."""
    old = await house.attach(client := house.client(), "old")
    await house.chat(client, old, "x" * 20_000)
    new = await house.attach(another := house.client(), "new")
    await house.chat(another, new, "y" * 20_000)
    await until(lambda: old.is_quiet() and new.is_quiet())
    held = old.held_bytes()
    assert held > 40_000  # the reply is in the history, and among the frames that can be resumed
    short_of_memory(house, monkeypatch, held + new.held_bytes() - 1)
    await until(lambda: not old.is_loaded())
    assert old.held_bytes() == 0
    assert new.is_loaded()
    assert Scrape(house.metrics.exposition())("realtime_sessions_unloaded_total") == 1
    await house.attach(returned := house.client(), "old")
    assert [event["content"] for event in (await returned.hears("ready"))["history"]] == ["hi", "x" * 20_000]


async def test_where_memory_is_used_up_no_session_is_opened(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that runs keeps its memory: those who come are told to come back, until it is done."""
    session = await house.attach(client := house.client(), "one")
    await house.chat(client, session, "x" * 50_000, gate := Pause())
    short_of_memory(house, monkeypatch, 40_000)
    await until(lambda: house.sessions._watch.is_full())
    refused = await house.refusal(session_id="two")
    assert (refused.code, refused.close_code) == (ErrorCode.AT_CAPACITY, CloseCode.AT_CAPACITY)
    gate.set()
    await until(lambda: not house.sessions._watch.is_full())
    await house.attach(house.client(), "two")


async def test_a_store_that_fails_leaves_an_unloaded_session_as_it_is(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes is told to come back, however many they are; then its history is read once for all of them."""
    session = await house.attach(client := house.client())
    await house.chat(client, session, "Hello")
    await until(session.is_quiet)
    session.dispatch(Unloaded())
    house.store.weather.append(StoreUnavailable("down"))
    assert (await house.refusal(session_id="s")).code == ErrorCode.STORE_UNAVAILABLE
    assert (await house.refusal(session_id="s", user_id="another")).code == ErrorCode.NOT_YOUR_SESSION
    assert not session.is_loaded()
    gate, waiting = await house.held_up(*(house.attach(house.client()) for _ in range(3)))
    house.store.weather.append(StoreUnavailable("nobody asks a second time"))
    gate.set()
    await asyncio.gather(*waiting)
    assert session.is_loaded()


async def test_the_metrics_know_what_lives_and_runs(house: House) -> None:
    """One live session with a reply on its way is one of each; and who has a queue has summaries."""
    await house.chat(client := house.client(), await house.attach(client), "Hel", Pause())
    lines = house.metrics.exposition().decode().splitlines()
    assert {"realtime_sessions_live 1.0", "realtime_turns_running 1.0", "realtime_handoff_depth 0.0"} <= set(lines)
    assert house.sessions.has_summaries()

"""The whole container under any order of events: users and their sockets, turns, a store with bad weather, and kills.

All is real, from the socket's door to the SQLite file and the spool, but the model and the network. A rule does one
thing and lets a few steps of the event loop go by, so that the next may fall between any two of them.
"""

import asyncio
import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from chat.conversation.history import History
from chat.conversation.machine import Conversation
from chat.durability.journal import Journal, Written
from chat.durability.spool import Spool
from chat.metrics import Metrics
from chat.protocol.frames import Accepted
from chat.sessions.kit import TurnKit
from chat.sessions.registry import Sessions
from chat.tools.get_user_stats import get_user_stats
from chat.tools.registry import Registry
from chat.web.admission import Admission
from chat.web.endpoint import SessionSocket
from chat.web.identity import Identities
from chat.web.limits import Limits
from chat.web.origins import Origins
from chat.web.quota import Quota
from infra.llm import Finished, ModelError, ToolCall
from infra.records import Event, Session
from infra.settings import WhileBusy
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.conftest import make_settings
from tests.conversation.test_history import assert_fit_for_a_model
from tests.support.flaky import FlakyStore
from tests.support.hypothesis_profile import lenient
from tests.support.improviser import Breath, Improviser, work
from tests.support.overheard import Client, Line, Overheard
from tests.support.prompts import STANDARD
from tests.support.scripted import Pause, Step
from tests.support.spooled import PATIENCE, spooled, until

TOOLS = ("answers", "fails", "breaks", "hangs", "get_user_stats")
SCRIPTS = st.lists(
    st.sampled_from(["words", "words", "long", "pause", "pause", "length", "busy", "down", *TOOLS]), max_size=5
)
WHO = st.integers(0, 2)
TURNS = st.sampled_from([0, 1, 2, 5, 40])
"""So many steps of the event loop go by after a rule."""
FORESEEN = {"tool failed", "ended sessions not announced"}
"""What may be logged as an error here: any other is trouble that somebody swallowed."""
Row = tuple[str, str, str | None]
"""A kept event's session, id and message id."""


class Living(RuleBasedStateMachine):
    """Three users in two sessions, in one container after the other, and a store that outlives them."""

    @initialize(
        while_busy=st.sampled_from(["queue", "interrupt", "reject", "merge"]),
        replay_bytes=st.sampled_from([0, 2_000, 2**30, 2**30]),
        max_events=st.sampled_from([8, 10_000]),
    )
    def open(self, while_busy: WhileBusy, replay_bytes: int, max_events: int) -> None:
        """Start the first container."""
        self.until_the_end = ExitStack()
        enter = self.until_the_end.enter_context
        self.folder = Path(enter(tempfile.TemporaryDirectory()))
        self.logs = enter(capture_logs())
        enter(
            patch.multiple(
                "chat.sessions.registry", Conversation=self._converse, OPEN_SECONDS=0.05, LAST_SAVED_SECONDS=0.01
            )
        )
        enter(patch("chat.sessions.opening.OPEN_SECONDS", 0.05))
        enter(patch.multiple("chat.durability.courier", FIRST_RETRY_SECONDS=0.0001, MOST_RETRY_SECONDS=0.002))
        enter(patch.multiple("chat.durability.journal", GATHER_SECONDS=0.0005, MOST_GATHER_SECONDS=0.001))
        enter(patch("infra.llm.retries.backoff", return_value=0))
        enter(patch("chat.conversation.machine.READY_CHARS", 2**40))
        self.settings = make_settings(
            self.folder,
            while_busy=while_busy,
            replay_bytes=replay_bytes,
            journal_max_events=max_events,
            max_queued_messages=2,
            history_events=2**20,
            linger_seconds=60,
        )
        self.recorded: list[Event] = []
        self.talks: dict[tuple[str, int], Overheard] = {}
        self.model = Improviser()
        self.messages: list[str] = []
        self.pauses: list[Pause] = []
        self.faults: list[str] = []
        self.clients = [Client(session_id, always_resumes=replay_bytes == 2**30) for session_id in "sst"]
        self.lines: list[Line] = []
        self.runner = enter(asyncio.Runner())
        sqlite = self.runner.run(SqliteStore.open(self.folder / "store.db"))
        self.until_the_end.callback(lambda: self.runner.run(sqlite.close()))
        self.store = FlakyStore(sqlite)
        self._do(0, self._begin)
        self.say(0, [], 0)

    # What users do

    @rule(who=WHO, script=SCRIPTS, turns=TURNS)
    def say(self, who: int, script: list[str], turns: int) -> None:
        """A new message, and what the model will do next."""
        number = len(self.messages)
        self.messages.append(json.dumps({"type": "message", "content": f"So {number}?", "message_id": f"m{number}"}))
        self.model.enqueue(*chain(*(self._steps(kind, f"{number}.{place}") for place, kind in enumerate(script))))
        self._do(turns, partial(self._send, self.clients[who], self.messages[-1]))

    @rule(who=WHO, what=st.sampled_from(["again", "plain", "nonsense", "cancel"]), which=st.integers(0, 3), turns=TURNS)
    def say_more(self, who: int, what: str, which: int, turns: int) -> None:
        """A message once more, whoever sent it first; one without an id; what is none; or a stop, of a turn or any."""
        heard = [frame.turn_id for frame in self.clients[who].seen if isinstance(frame, Accepted)]
        cancel = {"type": "cancel", "turn_id": heard[-which] if 0 < which <= len(heard) else None}
        again = self.messages[-which - 1 :][0]
        text = {"again": again, "plain": "Hello?", "nonsense": "{", "cancel": json.dumps(cancel)}[what]
        self._do(turns, partial(self._send, self.clients[who], text))

    @rule(who=WHO, unread=st.integers(0, 5), anew=st.sampled_from([False, False, False, True]), turns=TURNS)
    def come_back(self, who: int, unread: int, anew: bool, turns: int) -> None:
        """Go on from where it was, or a little before if the last frames got lost on their way; or begin anew."""
        client = self.clients[who]
        if client.line:
            client.line.end()  # or it would read on before the loop comes to what follows
        del client.seen[max(2, len(client.seen) - unread) :]  # with `ready` comes the text so far, right behind it
        self._do(turns, partial(self._connect, client, "" if anew else client.position()))

    @rule(who=WHO, how=st.sampled_from(["vanish", "break", "say goodbye", "dawdle", "dawdle"]), turns=TURNS)
    def lose(self, who: int, how: str, turns: int) -> None:
        """A socket breaks, noticed or not, or is closed; or its user stops reading, or goes on."""
        line = self.clients[who].line
        if line and how != "dawdle":
            self._do(turns, partial(line.end, {"vanish": 0, "break": 1006}.get(how, 1000)))
        elif line and line.ready and not line.ended:
            self._do(turns, line.reading.clear if line.reading.is_set() else line.reading.set)

    # What their surroundings do

    @rule(kind=st.sampled_from(["down", "down", "lost", "held"]), times=st.sampled_from([1, 1, 3, 30]), turns=TURNS)
    def rain(self, kind: str, times: int, turns: int) -> None:
        """The store fails, loses its answers, or hangs."""
        if kind == "held":
            self.store.weather.append(self._pause())
        else:
            weather: Any = self.store.weather if kind == "down" else self.store.lost_answers
            weather.extend([StoreUnavailable("it rains")] * times)
        self._do(turns)

    @rule(how=st.sampled_from(["go on", "go on", "clear up", "rest"]), turns=TURNS)
    def go_on(self, how: str, turns: int) -> None:
        """What has stopped somewhere goes on; the store takes what was said; everything comes to its end."""
        what = {"go on": self._release, "clear up": self._fine_weather, "rest": self._rest}
        self._do(turns, what[how])

    @rule(how=st.sampled_from([None, None, "killed", "killed", "asked to go"]), in_a_hurry=WHO, turns=TURNS)
    def end(self, how: str | None, in_a_hurry: int, turns: int) -> None:
        """The container ends, and another starts, before whose door some wait already."""

        async def begin() -> None:
            await self._begin()
            for client in self.clients[:in_a_hurry]:
                self._connect(client, client.position())

        if how:
            self._do(0, self._go if how == "asked to go" else self._die)
            self._do(turns, begin)

    # What must hold at any time

    @invariant()
    def what_was_said_is_kept(self) -> None:
        """Every event is in the store or the spool, each once and in order; what is called saved is in the store."""
        in_spool, stored = self._in_spool(), self._stored()  # in this order: what moves meanwhile is in the second
        for rows in in_spool, stored:
            assert max(Counter((s, m) for s, _, m in rows if m).values(), default=1) == 1, "a message is kept twice"
        kept = {*in_spool, *stored}
        assert {event.event_id for event in self.recorded} == {event_id for _, event_id, _ in kept}
        accepted = {(client.session_id, message_id) for client in self.clients for message_id in client.accepted}
        assert accepted <= {(session_id, message_id) for session_id, _, message_id in kept}
        for name in "st":
            said = [event.event_id for event in self.recorded if event.session_id == name]
            has = [event_id for session_id, event_id, _ in stored if session_id == name]
            assert has == said[: len(has)], "stored in another order, or not once"
        ids = {event_id for _, event_id, _ in stored}
        for talk in self.talks.values():
            saved = talk.saved()
            due = {r.event.event_id for r in talk.records if r.through <= saved}
            assert due <= ids, "called saved"

    @invariant()
    def who_reads_has_seen_what_was_said(self) -> None:
        """On however many sockets; and a model is asked nothing that it refuses, and nothing was swallowed."""
        assert not self.faults, self.faults[0]
        for client in self.clients:
            if client.seen:
                client.check(self._talk(client))
        asked = [*self.model.calls, *(talk.messages() for talk in self.talks.values() if not talk.silent)]
        self.model.calls.clear()
        for messages in asked:
            assert_fit_for_a_model(messages)
        assert {entry["event"] for entry in self.logs if entry["log_level"] == "error"} <= FORESEEN

    def teardown(self) -> None:
        """In the end all is answered, stored in order, and told to everybody."""
        if hasattr(self, "runner"):
            with self.until_the_end:
                try:
                    self._do(0, self._come_to_an_end)
                    self.what_was_said_is_kept()
                    self.who_reads_has_seen_what_was_said()
                    assert len(self._stored()) == len(self.recorded)
                finally:
                    self.runner.run(self._die())

    async def _come_to_an_end(self) -> None:
        await self._rest()
        for client in self.clients:
            while not (client.line and client.line.ready and not client.line.ended):
                await self._connect_and_wait(client)
        await self._rest()
        for client in self.clients:
            talk = self._talk(client)
            assert talk.saved() >= max((record.through for record in talk.records), default=-1)

    # How it is done

    async def _begin(self) -> None:
        """See `chat.main`."""
        metrics = Metrics()
        self.spool = await Spool.open(self.folder)
        self.journal = Journal(self.store, metrics, max_events=self.settings.journal_max_events)
        await self.journal.recover(self.spool)
        self.journal.start()
        kit = TurnKit(self.model, Registry([work, get_user_stats]), PATIENCE, 0.01, 3, metrics)
        self.sessions = Sessions(self.store, self.journal, kit, STANDARD, None, self.settings, "box")
        limits, quota = Limits(self.settings, metrics), Quota(self.store, metrics, 0)
        admission = Admission(Identities(None), Origins([]), limits, quota, self.sessions)
        self.door = SessionSocket(self.sessions, self.journal, admission, self.settings.max_message_chars)

    async def _go(self) -> None:
        """See `chat.main`."""
        self._release()
        await self.sessions.drain(within=0)
        await self.sessions.close(within=0)
        assert await self.journal.close(within=0) == 0
        await self._die()

    async def _die(self) -> None:
        """Nothing of the container does anything any more, nobody hears of it, and its file is free."""
        for talk in self.talks.values():
            talk.silent = True
        for line in self.lines:
            line.end()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.spool.close()

    def _converse(self, session: Session, history: History, **given: Any) -> Conversation:
        talk = Overheard(self.recorded, session, history, **given)
        recorded = [event.event_id for event in self.recorded if event.session_id == session.session_id]
        if recorded != [event.event_id for event in talk.before]:
            self.faults.append("opened without all that was recorded")
        assert self.talks.setdefault((session.session_id, session.epoch), talk) is talk
        return talk

    def _talk(self, client: Client) -> Overheard:
        return self.talks[client.session_id, client.seen[0].epoch]

    def _steps(self, kind: str, word: str) -> Sequence[Step]:
        if kind in TOOLS:
            name = kind if kind == "get_user_stats" else "work"
            return [ToolCall("c", name, "{}" if name == kind else json.dumps({"how": kind}))]
        steps: dict[str, Sequence[Step]] = {
            "words": [f"{word}a ", f"{word}b ", Breath(), f"{word}c ", Breath(), f"{word}d "],
            "long": [word * 10_000],
            "pause": [self._pause()],
            "length": [Finished("length")],
            "busy": [ModelError("model_unavailable", "It rains.", retryable=True)],
            "down": [ModelError("model_unavailable", "It rains.", retryable=False)],
        }
        return steps[kind]

    def _pause(self) -> Pause:
        self.pauses.append(pause := Pause())
        return pause

    def _release(self) -> None:
        for pause in self.pauses:
            pause.set()

    def _do(self, turns: int, what: Callable[[], Awaitable[None] | None] = lambda: None) -> None:
        async def step() -> None:
            if doing := what():
                async with asyncio.timeout(PATIENCE):
                    await doing
            for _ in range(turns):
                await asyncio.sleep(0)

        self.runner.run(step())

    def _connect(self, client: Client, position: str) -> None:
        if client.line:
            client.line.end()

        def read(text: str) -> None:
            if client.line is line:
                try:  # what fails in here must not get lost in the server's care for a socket's troubles
                    client.read(text)
                    if not text.startswith('{"type":"token"'):
                        self.what_was_said_is_kept()
                except AssertionError as error:
                    self.faults.append(f"{text[:300]}: {error}")

        client.line = line = Line(self.door, client, position, read)
        self.lines.append(line)

    async def _connect_and_wait(self, client: Client) -> None:
        if not client.line or client.line.ended:
            self._connect(client, client.position())
        if client.line:
            await client.line.answered.wait()

    async def _send(self, client: Client, text: str) -> None:
        await self._connect_and_wait(client)
        if client.line:
            client.line.say(text)

    async def _fine_weather(self) -> None:
        self.store.weather.clear()
        self.store.lost_answers.clear()
        self._release()
        await self.journal.settled()

    async def _rest(self) -> None:
        for client in self.clients:
            if client.line:
                client.line.reading.set()
        await self._fine_weather()
        await until(self._is_at_rest)

    def _is_at_rest(self) -> bool:
        talks = [talk for talk in self.talks.values() if not talk.silent]
        if self.journal._courier.waiting() or any(talk.is_running() for talk in talks):
            return False
        there = [client for client in self.clients if client.line and not client.line.ended]
        return all(
            client.line and client.line.ready and client.seen[-1].seq >= max(self._talk(client).sent, default=0)
            for client in there
        )

    def _stored(self) -> list[Row]:
        with closing(sqlite3.connect(f"file:{self.folder / 'store.db'}?mode=ro", uri=True)) as db:
            query = "SELECT session_id, event_id, json_extract(metadata, '$.message_id') FROM events ORDER BY id"
            return db.execute(query).fetchall()

    def _in_spool(self) -> list[Row]:
        written: list[Any] = [msgspec.json.decode(row, type=Written) for row in spooled(self.folder, "journal")]
        return [(e.session_id, e.event_id, e.metadata.get("message_id")) for e in written if isinstance(e, Event)]


TestLiving = Living.TestCase
TestLiving.settings = settings(lenient, max_examples=100)

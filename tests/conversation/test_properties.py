"""The conversation machine under any sequence of inputs: what must hold after every step."""

import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chat.conversation.effects import Effect, Record, RecordMode, Reply, Send, StartTurn, StopTurn
from chat.conversation.history import History
from chat.conversation.inputs import (
    Attached,
    CancelAsked,
    EndAsked,
    EventsSaved,
    FrameRefused,
    Input,
    ModeFound,
    Position,
    Reloaded,
    ReplyFinished,
    TokenCame,
    ToolAnswered,
    ToolsAsked,
    TurnFailed,
    Unloaded,
    UserSaid,
)
from chat.conversation.machine import Conversation, IllegalInput
from chat.conversation.routing import Prompts
from chat.protocol.codec import encode
from chat.protocol.frames import (
    Accepted,
    Done,
    Error,
    ErrorCode,
    ModeChosen,
    Ready,
    Saved,
    Token,
    ToolCalled,
    ToolResult,
    Usage,
)
from infra.llm import ToolCall
from infra.records import Event, Mode, Session
from infra.settings import WhileBusy
from infra.store.base import storable
from tests.conversation.test_history import assert_fit_for_a_model, recordings
from tests.conversation.test_machine import DAWN, a_clock, a_counter
from tests.support.hypothesis_profile import lenient
from tests.support.prompts import BY_MODEL, STANDARD

TURN_FRAMES = (Token, ToolCalled, ToolResult, Done, Error)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3), st.lists, max_leaves=4)
ARGUMENTS = st.sampled_from(["{}", '{"a": 1}', "", "{nonsense", "[1]", '"\\ud800"', "null", "1e999"])
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
USAGES = st.builds(Usage, st.integers(0, 3), st.integers(0, 3))


def as_read(frames: list[Any]) -> list[Any]:
    """Frames as a client reads them: each run of tokens of one turn as (turn, text, last seq)."""
    read: list[Any] = []
    for frame in frames:
        if not isinstance(frame, Token):
            read.append(frame)
        elif read and isinstance(read[-1], tuple) and read[-1][0] == frame.turn_id:
            read[-1] = (frame.turn_id, read[-1][1] + frame.content, frame.seq)
        else:
            read.append((frame.turn_id, frame.content, frame.seq))
    return read


class Conversing(RuleBasedStateMachine):
    """Users, a turn and a store that do whatever they please; `perform` holds the effects against what is known.

    The machine knows of a turn only what effects have told: that it was accepted, started, stopped, done.
    """

    @initialize(
        while_busy=st.sampled_from(["queue", "interrupt", "reject", "merge"]),
        max_waiting=st.integers(1, 3),
        limit=st.integers(2, 30),
        before=st.just([]) | recordings(),
        replay_bytes=st.sampled_from([0, 500, 100_000]),
        prompts=st.sampled_from([STANDARD, BY_MODEL]),
        mode=st.sampled_from([None, None, "casual", "gone"]),
    )
    def open(
        self,
        while_busy: WhileBusy,
        max_waiting: int,
        limit: int,
        before: list[Event],
        replay_bytes: int,
        prompts: Prompts,
        mode: Mode | None,
    ) -> None:
        """Open a session, new or with a past."""
        self.replay_bytes = replay_bytes
        self.stream: list[Any] = []
        self.max_waiting = max_waiting
        self.while_busy = while_busy
        self.limit = limit
        self.prompts = prompts
        self.mode, self.mode_told = mode, False
        self.talk = Conversation(
            Session(session_id="s", user_id="u", epoch=1, start_time=DAWN, mode=mode),
            History(before, limit),
            prompts=prompts,
            while_busy=while_busy,
            max_waiting=max_waiting,
            replay_bytes=self.replay_bytes,
            new_id=a_counter(),
            now=a_clock(),
        )
        self.stored = list(before)
        self.known = list(before)[-limit:]
        self.seq = self.unloaded_at = 0
        self.through = self.saved = 0
        self.throughs: list[int] = []
        self.turn_of = {message: turn for message, (turn, _) in History(before, limit).said().items()}
        self.words_of = {message: words for message, (_, words) in History(before, limit).said().items()}
        self.waiting: list[str] = []
        self.running: str | None = None
        self.stopped: str | None = None
        self.started: set[str] = set()
        self.done: dict[str, str] = {}
        self.ends: dict[str, str] = {}
        self.open_calls: list[str] = []
        self.shown = self.drafted = ""
        self.part = 0
        self.usage = Usage()
        self.ended = False

    # What must hold of every effect

    def receive(self, happened: Input) -> tuple[Effect, ...]:
        """Let it happen, and check each effect in its order."""
        running, effects = self.running, self.talk.receive(happened)
        for effect in effects:
            match effect:
                case Send(frame):
                    self.told(frame)
                case Reply(_, frame):
                    self.replied(frame)
                case Record(event, through):
                    self.recorded(event, through)
                case StartTurn(turn_id):
                    assert self.running is None, "two turns at once"
                    assert turn_id in self.waiting, "started without being accepted, or for a second time"
                    self.waiting = [waiting for waiting in self.waiting if waiting != turn_id]
                    self.started.add(turn_id)
                    self.part = 0
                    self.running = turn_id
                case StopTurn(turn_id):
                    assert turn_id == self.running
                    self.stopped = turn_id
                case RecordMode(mode):
                    assert self.mode_told, "a mode that nobody was told of"
                    assert mode == self.mode
                    assert mode in self.prompts.modes
        assert self.stopped is None, "a stopped turn was not brought to its end"
        told_to_stop = StopTurn(running) in effects if running else False
        assert told_to_stop == (running in self.done and not isinstance(happened, ReplyFinished | TurnFailed))
        return effects

    def told(self, frame: Any) -> None:
        """A frame of the stream went out to everybody."""
        encode(frame)
        assert frame.seq > self.seq
        self.seq = frame.seq
        self.stream.append(frame)
        if isinstance(frame, TURN_FRAMES) and frame.turn_id:
            assert frame.turn_id not in self.done, "a frame of a turn after its done"
        match frame:
            case Accepted(_, message_id, turn_id, content):
                assert self.turn_of.setdefault(message_id, turn_id) == turn_id
                self.words_of[message_id] = content
                self.waiting.append(turn_id)
            case ModeChosen(_, mode):
                assert self.mode is None, "a session's mode has changed"
                self.mode, self.mode_told = mode, True
            case Token(_, turn_id, content):
                assert turn_id == self.running
                self.shown += content
            case ToolCalled(_, turn_id, call_id):
                assert turn_id == self.running
                self.open_calls.append(call_id)
            case ToolResult(_, turn_id, call_id):
                assert turn_id == self.running
                self.open_calls.remove(call_id)
            case Saved(_, through):
                assert through <= self.seq
            case Done():
                self.finished(frame)

    def finished(self, frame: Done) -> None:
        """A turn was declared over: the one that runs, or one that waits and now never will."""
        assert not (self.open_calls and frame.turn_id == self.running), "done before its calls were closed"
        assert frame.turn_id == self.running or frame.turn_id in self.waiting, "done without being accepted"
        self.done[frame.turn_id] = frame.reason
        if frame.turn_id == self.running:
            assert frame.usage == self.usage
            self.usage = Usage()
            self.running = self.stopped = None
        else:
            assert frame.reason == "cancelled"
            self.waiting = [waiting for waiting in self.waiting if waiting != frame.turn_id]

    def replied(self, frame: Any) -> None:
        """A frame went out to one connection."""
        encode(frame)
        if isinstance(frame, Ready):
            assert frame.seq in (self.seq, self.seq - 1)
            assert frame.active_turn_id == self.running
            assert frame.mode == self.mode
            if not frame.resumed:
                assert frame.more == (len(frame.history) < len(self.stored))
                waiting = [through for through in self.throughs if through > self.saved]
                assert frame.unsaved == waiting[max(0, len(waiting) - len(frame.history)) :]
        elif isinstance(frame, Token):  # what a newcomer missed, at the stream's position
            assert (frame.seq, frame.turn_id) == (self.seq, self.running)
            assert frame.content == self.shown
        else:
            assert frame.seq > self.seq
            self.seq = frame.seq

    def recorded(self, event: Event, through: int) -> None:
        """An event went to the store."""
        assert self.through <= through <= self.seq + 1
        if through > self.seq:
            assert event.role == "assistant", "only a text before a call has a seq of its own"
            assert "reason" not in event.metadata
            self.seq = through
        self.through = through
        self.throughs.append(through)
        self.stored.append(event)
        self.known.append(event)
        while len(self.known) > self.limit and self.known[0].turn_id != (self.running or event.turn_id):
            del self.known[0]  # but never what the running turn was asked
        if event.role == "assistant" and event.turn_id in self.started:
            assert event.content == self.shown, "recorded is not what was shown"
            self.part += bool(event.content)
            self.shown = self.drafted = ""
        elif event.role == "assistant":
            assert event.content == "", "words of a turn that never ran"
        if "reason" in event.metadata:
            assert event.turn_id not in self.ends, "two last events of one turn"
            self.ends[event.turn_id] = event.metadata["reason"]

    # What users do

    @rule(content=WORDS, conn=st.sampled_from("ab"))
    def say_more(self, content: str, conn: str) -> None:
        """A new message."""
        self.say(content, conn, None)

    @rule(content=WORDS, conn=st.sampled_from("ab"), message_id=st.none() | st.sampled_from("mnopq"))
    def say(self, content: str, conn: str, message_id: str | None) -> None:
        """A message, new or sent again."""
        before, known = self.running, self.turn_of.get(message_id or "")
        effects = self.receive(UserSaid(content, message_id, conn))
        if self.ended:
            assert effects == ()
        elif known and storable(self.words_of[str(message_id)]) != storable(content):
            (refusal,) = effects
            assert isinstance(refusal, Reply)
            assert isinstance(refusal.frame, Error)
            assert (refusal.frame.code, refusal.frame.message_id) == (ErrorCode.MESSAGE_ID_USED, message_id)
        elif known:
            replied: list[Any] = [effect.frame for effect in effects if isinstance(effect, Reply)]
            accepted, *end = replied
            assert len(effects) == 1 + len(end)
            assert accepted == Accepted(accepted.seq, str(message_id), known, content)
            alive = known == self.running or known in self.waiting
            assert [(done.turn_id, done.reason) for done in end] == (
                [] if alive or known not in self.known_ends() else [(known, self.known_ends()[known])]
            )
        elif isinstance(effects[0], Reply):
            assert isinstance(effects[0].frame, Error)
            assert effects[0].frame.code == ErrorCode.BUSY
            assert before, "refused although nothing runs"
            assert self.while_busy == "reject" or len(self.waiting) == self.max_waiting
            assert len(effects) == 1
        elif before is None or self.while_busy == "interrupt":
            assert isinstance(effects[-1], StartTurn)

    @rule(conn=st.sampled_from("ab"), nonsense=st.booleans())
    def attach(self, conn: str, nonsense: bool) -> None:
        """A connection joins, and perhaps sends what is no frame."""
        effects = self.receive(Attached(conn))
        ready = effects[0]
        assert isinstance(ready, Reply)
        assert isinstance(ready.frame, Ready)
        assert ready.frame.history == self.known
        assert len(effects) == (2 if self.shown and self.running else 1)
        if nonsense:
            refused = Error(self.seq + 1, ErrorCode.BAD_JSON, "No.", None, "m", 1.5)
            asked = FrameRefused(conn, ErrorCode.BAD_JSON, "No.", "m", 1.5)
            assert self.receive(asked) == (Reply(conn, refused),)

    @rule(data=st.data(), conn=st.sampled_from("ab"))
    def come_back(self, data: st.DataObject, conn: str) -> None:
        """A connection resumes from any position: what it then has seen is what was said, or it is told to redraw."""
        after = data.draw(st.integers(0, self.seq + 2))
        epoch = data.draw(st.sampled_from([1, 1, 1, 2]))
        before, effects = self.seq, self.talk.receive(Attached(conn, Position(epoch, after)))
        replied: list[Any] = [effect.frame for effect in effects if isinstance(effect, Reply)]
        ready, *missed = replied
        assert len(effects) == 1 + len(missed)
        assert isinstance(ready, Ready)
        if ready.resumed:
            assert (ready.seq, ready.history, epoch) == (after, [], 1)
            assert as_read(missed) == as_read([frame for frame in self.stream if frame.seq > after])
            assert len(missed) == len(as_read(missed)), "tokens were not joined"
        else:
            assert epoch != 1 or not self.unloaded_at <= after <= before or self.replay_bytes < 100_000, (
                "it could have been resumed"
            )
            assert ready.history == self.known

    def known_ends(self) -> dict[str, str]:
        """The reasons of the turns whose ends are remembered."""
        return {event.turn_id: event.metadata["reason"] for event in self.known if "reason" in event.metadata}

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Somebody presses stop, for a turn in any state, or for none that was ever heard of."""
        known = [*self.waiting, *self.done, *([self.running] if self.running else []), "never"]
        turn_id = data.draw(st.none() | st.sampled_from(known))
        hit = self.running if turn_id is None else turn_id
        alive = hit is not None and (hit == self.running or hit in self.waiting)
        effects = self.receive(CancelAsked(turn_id))
        assert bool(effects) == alive
        assert not alive or self.done[str(hit)] == "cancelled"

    # What the running turn does

    @precondition(lambda self: self.running and self.mode is None)
    @rule(answer=st.sampled_from(["", "sales", "Support!", "sales, support"]) | WORDS, usage=USAGES)
    def find_mode(self, answer: str, usage: Usage) -> None:
        """The model was asked for the mode, and said something or nothing."""
        self.add(usage)
        effects = self.receive(ModeFound(str(self.running), answer, usage))
        assert effects == (Send(ModeChosen(self.seq, str(self.mode))), RecordMode(str(self.mode)))

    @precondition(lambda self: self.running and not self.open_calls)
    @rule(text=WORDS)
    def speak(self, text: str) -> None:
        """A token."""
        self.receive(TokenCame(str(self.running), text))

    @rule()
    def keep_a_draft(self) -> None:
        """What was said since the last time, and nothing that is recorded: together they are what was shown."""
        draft = self.talk.draft()
        assert self.drafted + (draft.text if draft else "") == self.shown
        assert draft is None or (draft.turn_id, draft.part) == (self.running, self.part)
        self.drafted = self.shown

    @precondition(lambda self: self.running and not self.open_calls)
    @rule(arguments=st.lists(ARGUMENTS, min_size=1, max_size=3), usage=USAGES)
    def ask_tools(self, arguments: list[str], usage: Usage) -> None:
        """Tools, under call ids that other turns have, too."""
        used = sum(e.turn_id == self.running and e.metadata.get("kind") == "call" for e in self.stored)
        calls = [ToolCall(f"c{used + n}", "look", text) for n, text in enumerate(arguments)]
        self.add(usage)
        self.receive(ToolsAsked(str(self.running), tuple(calls), usage))
        assert self.open_calls == [call.call_id for call in calls]

    @precondition(lambda self: self.open_calls)
    @rule(data=st.data(), result=JSON, error=st.none() | WORDS)
    def answer(self, data: st.DataObject, result: Any, error: str | None) -> None:
        """A tool's result or failure."""
        call_id = data.draw(st.sampled_from(self.open_calls))
        self.receive(ToolAnswered(str(self.running), call_id, None if error else result, error))
        assert call_id not in self.open_calls
        said = json.loads(self.stored[-1].content)
        assert said == ({"error": error} if error else result)

    @precondition(lambda self: self.running and not self.open_calls)
    @rule(usage=USAGES, reason=st.sampled_from(["complete", "length"]))
    def finish(self, usage: Usage, reason: Any) -> None:
        """An answer."""
        turn_id = str(self.running)
        self.add(usage)
        self.receive(ReplyFinished(turn_id, reason, usage))
        assert self.done[turn_id] == reason

    @precondition(lambda self: self.running)
    @rule()
    def fail(self) -> None:
        """A failure, in the middle of tools or not."""
        turn_id = str(self.running)
        self.receive(TurnFailed(turn_id, "internal", "Sorry."))
        assert self.done[turn_id] == "error"

    def add(self, usage: Usage) -> None:
        """Count the round's tokens."""
        self.usage = Usage(self.usage.input_tokens + usage.input_tokens, self.usage.output_tokens + usage.output_tokens)

    # What cannot have happened, or no longer counts

    @rule(data=st.data())
    def be_late(self, data: st.DataObject) -> None:
        """A turn that is over, waits, or never was, still says something."""
        turn_id = data.draw(st.sampled_from([*self.done, *self.waiting, "never"]))
        call_id = data.draw(st.sampled_from([*self.open_calls, "c0"]))
        late: list[Input] = [
            ModeFound(turn_id, "sales", Usage(9, 9)),
            TokenCame(turn_id, "late"),
            ToolsAsked(turn_id, (ToolCall("c99", "look", "{}"),), Usage(9, 9)),
            ToolAnswered(turn_id, call_id, 1),
            ReplyFinished(turn_id, "complete", Usage(9, 9)),
            TurnFailed(turn_id, "internal", "Late."),
        ]
        assert self.receive(data.draw(st.sampled_from(late))) == ()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def be_illegal(self, data: st.DataObject) -> None:
        """The running turn says what it cannot say: it raises, and nothing has changed."""
        turn_id = str(self.running)
        illegal: list[Input] = [ToolAnswered(turn_id, "c98", 1)]
        if self.mode is not None:
            illegal.append(ModeFound(turn_id, "sales", Usage(9, 9)))
        if self.open_calls:
            illegal.append(ToolsAsked(turn_id, (ToolCall("c99", "look", "{}"),), Usage(9, 9)))
            illegal.append(ReplyFinished(turn_id, "complete", Usage(9, 9)))
        happened = data.draw(st.sampled_from(illegal))
        before = self.talk.receive(Attached(None)), self.talk.messages()
        with pytest.raises(IllegalInput):
            self.talk.receive(happened)
        assert (self.talk.receive(Attached(None)), self.talk.messages()) == before

    # The store, and the end

    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        """The store acknowledges some of what was recorded."""
        through = data.draw(st.integers(self.saved, self.through))
        self.saved = through
        assert self.receive(EventsSaved(through)) == (Send(Saved(self.seq, through)),)

    @rule()
    def rest(self) -> None:
        """Memory is short: what is stored is let go of, and is there again when it is needed."""
        if self.running or self.waiting or self.ended or any(through > self.saved for through in self.throughs):
            assert not self.talk.is_quiet()
            with pytest.raises(IllegalInput):
                self.receive(Unloaded())
            return
        assert self.receive(Unloaded()) == ()
        assert self.talk.held_bytes() == 0
        for early in (UserSaid("early"), Attached(None), Unloaded()) if self.talk.is_quiet() else ():
            with pytest.raises(IllegalInput):
                self.receive(early)
        self.known = self.stored[-self.limit :]
        assert self.receive(Reloaded(self.stored[-self.limit - 1 :])) == ()
        with pytest.raises(IllegalInput):
            self.receive(Reloaded([]))
        self.unloaded_at = self.seq
        said = History(self.known, self.limit).said()
        self.turn_of = {message: turn for message, (turn, _) in said.items()}
        self.words_of = {message: words for message, (_, words) in said.items()}

    @rule(really=st.sampled_from(range(20)))
    def end(self, really: int) -> None:
        """Nobody is there any more."""
        if really == 19:
            self.receive(EndAsked())
            self.ended = True
            assert self.running is None
            assert self.waiting == []

    def teardown(self) -> None:
        """Every turn that was accepted comes to exactly one end."""
        if hasattr(self, "talk"):
            self.receive(EndAsked())
            assert self.running is None
            assert self.waiting == []
            assert self.started <= set(self.done)

    # What must hold at rest

    @invariant()
    def a_model_accepts_the_history(self) -> None:
        """Whatever happened."""
        assert_fit_for_a_model(self.talk.messages())

    @invariant()
    def the_model_is_asked_for_a_mode_only_while_there_is_none(self) -> None:
        """A running turn without a mode asks for it, which rules never leave open; the prompt is that of the mode."""
        asks = self.talk.mode_question()
        assert (asks is not None) == (self.running is not None and self.mode is None)
        assert asks is None or self.prompts is BY_MODEL
        assert self.talk.messages()[0].content == self.prompts.prompt(self.mode)

    @invariant()
    def what_is_stored_is_what_is_known(self) -> None:
        """A history read back from the store tells a model the same."""
        assert self.ends == self.done, "a turn's end is not stored as it was told"
        read_back = History(self.known, len(self.known) or 1)
        assert read_back.messages(without=self.waiting) == self.talk.messages()[1:]

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """A turn waits only while another runs."""
        assert self.running or not self.waiting
        assert self.while_busy in ("queue", "merge") or not self.waiting


TestConversing = Conversing.TestCase
TestConversing.settings = settings(lenient, max_examples=250)

"""What a conversation knows: the record that the machine's parts share, and the steps they all take."""

from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from chat.conversation.draft import stable_id
from chat.conversation.effects import Effect, Record, Send
from chat.conversation.history import History
from chat.conversation.open_turn import OpenTurn
from chat.conversation.replay import Replay
from chat.conversation.routing import Prompts
from chat.protocol import frames as wire
from infra.records import Event, Role, Session
from infra.settings import WhileBusy
from infra.store.base import storable

Effects = Iterable[Effect]

SAID_BYTES = 512
"""What a message id that is remembered takes: it, its turn's, and that of its words."""


class IllegalInput(Exception):
    """An input that cannot have happened, such as a result of a tool that was not called. The state is as before."""


class State:
    """One opened session. It is changed by the machine and its parts (`messages`, `turns`), and read by nobody else.

    It is *idle* while `turn` is None, *running* while a turn is answered (further turns may wait), and *ended* once
    `ended` is set.
    """

    def __init__(
        self,
        session: Session,
        history: History,
        *,
        prompts: Prompts,
        while_busy: WhileBusy,
        max_waiting: int,
        replay_bytes: int,
        new_id: Callable[[], str],
        now: Callable[[], datetime],
    ) -> None:
        self.session_id = session.session_id
        self.epoch = session.epoch
        self.mode = session.mode
        self.load(history)
        self.prompts = prompts
        self.while_busy = while_busy
        self.max_waiting = max_waiting
        self.new_id = new_id
        self.now = now
        self.seq = 0
        self.replay = Replay(replay_bytes)
        self.turn: OpenTurn | None = None
        self.waiting: list[str] = []
        """One turn id per message that waits; merged messages share theirs."""
        self.unsaved: deque[int] = deque()
        """For each event that is not known to be stored, in order, the `seq` up to which clients were told of it."""
        self.ended = False

    def load(self, history: History) -> None:
        """Know what was said, as it is stored."""
        self.history = history
        self.loaded = True
        self.said = {
            message_id: (turn_id, self.words_id(message_id, words))
            for message_id, (turn_id, words) in history.said().items()
        }
        """For each message id that is remembered, its turn, and the id of its words."""

    def unload(self) -> None:
        """Let go of everything that can be read again from the store; see `inputs.Unloaded`."""
        self.history = self.history.anew(())
        self.loaded = False
        self.said = {}
        self.replay.forget(self.seq)

    def is_quiet(self) -> bool:
        """Whether nothing runs or waits, and everything that was said is stored."""
        return not (self.turn or self.waiting or self.unsaved or self.ended)

    def held_bytes(self) -> int:
        """About how much memory it takes."""
        saying = self.turn.held_bytes() if self.turn else 0
        return self.history.held_bytes + self.replay.held_bytes + saying + SAID_BYTES * len(self.said)

    def running(self, turn_id: str) -> OpenTurn | None:
        """The turn that runs, if it is this one."""
        return self.turn if self.turn and self.turn.turn_id == turn_id else None

    def next_seq(self) -> int:
        """The number of the next frame."""
        self.seq += 1
        return self.seq

    def send(self, frame: wire.StreamFrame) -> Send:
        """Send a frame to every connection, and keep it for those that come back."""
        self.replay.add(frame)
        return Send(frame)

    def record(
        self, role: Role, content: str, turn_id: str, metadata: dict[str, Any], event_id: str | None = None
    ) -> Record:
        """Store an event, as what clients were told of up to the latest frame."""
        event = Event(
            event_id=event_id or self.new_id(),
            session_id=self.session_id,
            turn_id=turn_id,
            role=role,
            content=content,
            timestamp=self.now(),
            metadata=metadata,
        )
        return self.keep(event)

    def keep(self, event: Event) -> Record:
        """Store this event; see `record`."""
        turn_id = event.turn_id
        self.history.add(event, self.turn.turn_id if self.turn else turn_id, self.waiting)
        self.unsaved.append(self.seq)
        return Record(event, self.seq)

    def words_id(self, message_id: str, words: str) -> str:
        """The event id of a message: the same for the same words under the same id, and another for any others."""
        return stable_id(self.session_id, f"{message_id}\n{storable(words)}")

"""The WebSocket door, `/ws/session/{session_id}`: ASGI messages outside, inputs and outboxes inside."""

import asyncio
from contextlib import ExitStack
from contextvars import copy_context
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope
from starlette.types import Send as AsgiSend

from chat.conversation.inputs import CancelAsked, FrameRefused, UserSaid
from chat.durability.journal import Journal
from chat.metrics import LOST
from chat.protocol.codec import ProtocolError, encode, parse
from chat.protocol.frames import Auth, Cancel, CloseCode, Error, ErrorCode, Message, Ping, Pong
from chat.sessions.door import Departure, Refused
from chat.sessions.outbox import Outbox
from chat.sessions.registry import Sessions
from chat.sessions.session import Session
from chat.sessions.turn import SORRY
from chat.web.admission import Admission, Left
from chat.web.asked import check_id, position, request_id
from chat.web.connection import CLOSED_WITH, DROP, LISTEN, SEND
from chat.web.limits import TooMuch
from chat.web.standing import Standing
from chat.web.tokens import offered
from infra.telemetry import bind, get_logger

DEPARTURES = {1000: Departure.GOODBYE, 1001: Departure.GOING_AWAY}
"""What a client's close code says. Any other, 1005 (none given) among them, may be a lost network."""
FAIR_SHARE = 32
"""How many frames of one socket are handled before others get a turn."""
JOURNAL_RETRY_SECONDS = 5.0
CANNOT_STORE = "The server cannot store messages at the moment; send this again later."
TOO_MUCH_TO_STORE = "More is being said than the server can store at once; send this again in a moment."
LAST_WORDS_SECONDS = 5.0
"""How long a client has to read why it is being closed."""

PONG = encode(Pong())

log = get_logger("endpoint")


class Visit(msgspec.Struct, frozen=True):
    """One socket's part in a session."""

    session: Session
    outbox: Outbox
    standing: Standing


class SessionSocket:
    """An ASGI application for one kind of WebSocket.

    It takes raw ASGI rather than Starlette's `WebSocket`: a frame is sent for every token, and `send` is the
    hottest line in the server.
    """

    def __init__(self, sessions: Sessions, journal: Journal, admission: Admission, max_chars: int) -> None:
        """`max_chars` is the longest message."""
        self._sessions = sessions
        self._journal = journal
        self._admission = admission
        self._metrics = sessions.metrics
        self._max_chars = max_chars

    async def __call__(self, scope: Scope, receive: Receive, send: AsgiSend) -> None:
        """Serve one connection from handshake to close."""
        await receive()  # websocket.connect
        if not self._admission.may_knock(scope):
            await send({"type": "websocket.close"})  # before accept: HTTP 403
            return
        token, subprotocol = offered(scope)
        await send({"type": "websocket.accept", "subprotocol": subprotocol})
        outbox = Outbox(lambda code: _drop(scope, code), scope["extensions"].get(SEND))
        writer = asyncio.create_task(_write(outbox, send))
        self._metrics.sockets_open.inc()
        try:
            await self._serve(scope, token, receive, outbox)
            if outbox.is_closing():  # the close is queued behind the frames that explain it
                await asyncio.wait([writer], timeout=LAST_WORDS_SECONDS)
                outbox.drop(CloseCode.SLOW_READER)
        finally:
            outbox.abandon()
            writer.cancel()
            self._metrics.closed(scope["extensions"].get(CLOSED_WITH, lambda: LOST)())

    async def _serve(self, scope: Scope, token: str | None, receive: Receive, outbox: Outbox) -> None:
        """Let the caller in, attach to the session, read to the end, detach."""
        session_id = scope["path_params"]["session_id"]
        query = QueryParams(scope["query_string"])
        with ExitStack() as leaving:
            try:
                check_id(session_id)
                where = position(query)
                outbox.wants_reasoning = query.get("reasoning") == "1"
                bind(request_id=request_id(scope), session_id=session_id)
                standing = await self._admission.admit(scope, token, receive, outbox)
                leaving.callback(standing.over)
                user_id = standing.identity.user_id
                leaving.enter_context(self._admission.take_place(scope, user_id, session_id))
                await self._admission.quota.prepare(user_id)
                session = await self._sessions.attach(session_id, user_id, outbox, where)
            except Left:
                return
            except Refused as refused:
                self._metrics.openings_refused.labels(refused.code.value).inc()
                outbox.put(encode(Error(0, refused.code, str(refused), retry_after=refused.retry_after)))
                outbox.close(refused.close_code)
                return
            except Exception:
                log.exception("session cannot be opened")
                self._metrics.openings_refused.labels(ErrorCode.INTERNAL.value).inc()
                outbox.put(encode(Error(0, ErrorCode.INTERNAL, SORRY)))
                outbox.close(CloseCode.INTERNAL)
                return
            departure = Departure.DROP
            try:
                departure = await self._read(scope, receive, Visit(session, outbox, standing))
            finally:
                self._sessions.detach(session, outbox, departure)

    async def _read(self, scope: Scope, receive: Receive, visit: Visit) -> Departure:
        """Take the client's frames until it leaves; how it left."""
        session, outbox = visit.session, visit.outbox
        context = copy_context()  # for the log: the protocol calls from its own, which knows no request

        def take_now(text: str) -> bool:
            if not outbox.has_room() or not session.is_loaded() or self._journal.is_pressed(session.session_id):
                return False
            context.run(self._take, text, visit)
            return True

        listen = scope["extensions"].get(LISTEN, lambda take: None)
        taken = 0
        while True:
            listen(take_now)
            message = await receive()
            listen(None)
            if message["type"] == "websocket.disconnect":
                return DEPARTURES.get(message.get("code", 0), Departure.DROP)
            text = message.get("text")
            if text is None:
                outbox.close(CloseCode.BINARY_FRAME)
                return Departure.DROP
            if early := self._take(text, visit):
                await self._say(early, session, outbox)
            taken += 1
            if taken % FAIR_SHARE == 0:
                await asyncio.sleep(0)
            if not outbox.has_room():
                await outbox.room()  # who does not read is not listened to
            if self._journal.is_pressed(session.session_id):
                await self._journal.relief(session.session_id)  # nor is, for a moment, who speaks faster than is stored

    def _take(self, text: str, visit: Visit) -> Message | None:
        """Do what a frame says; a message is given back if the session's history must be read before."""
        session, outbox = visit.session, visit.outbox
        try:
            frame = parse(text, self._max_chars)
        except ProtocolError as error:
            session.dispatch(FrameRefused(outbox, error.code, str(error), error.message_id))
            return None
        if isinstance(frame, Ping):
            outbox.put(PONG)
        elif isinstance(frame, Cancel):
            session.dispatch(CancelAsked(frame.turn_id))
        elif isinstance(frame, Auth):
            visit.standing.renew(frame.token)
        elif refused := self._refusal(session, visit.standing):
            why = FrameRefused(outbox, refused.code, str(refused), frame.message_id, refused.retry_after)
            session.dispatch(why)
        elif session.is_loaded():
            session.dispatch(UserSaid(frame.content, frame.message_id, outbox))
        else:
            return frame
        return None

    def _refusal(self, session: Session, standing: Standing) -> Refused | None:
        """Why no message can be taken now, if none can: the client sends it again later."""
        if self._sessions.is_draining():
            restarting = "The server is restarting; this message is taken when you are back."
            return Refused(CloseCode.RESTARTING, ErrorCode.RESTARTING, restarting, 1.0)
        if self._journal.is_full(session.session_id):
            full = CANNOT_STORE if self._journal.is_failing() else TOO_MUCH_TO_STORE
            return Refused(CloseCode.STORE_UNAVAILABLE, ErrorCode.STORE_UNAVAILABLE, full, JOURNAL_RETRY_SECONDS)
        try:
            self._admission.limits.message(standing.identity.user_id)
            self._admission.quota.check(standing.identity.user_id)
        except TooMuch as too_much:
            return too_much
        return None

    async def _say(self, said: Message, session: Session, outbox: Outbox) -> None:
        """Say this once the session's history is back in memory."""
        try:
            while not session.is_loaded():
                await self._sessions.reload(session)
        except Refused as refused:
            why = FrameRefused(outbox, refused.code, str(refused), said.message_id, refused.retry_after)
            session.dispatch(why)
        else:
            session.dispatch(UserSaid(said.content, said.message_id, outbox))


async def _write(outbox: Outbox, send: AsgiSend) -> None:
    async def send_text(text: str) -> None:
        await send({"type": "websocket.send", "text": text})

    async def close(code: CloseCode) -> None:
        await send({"type": "websocket.close", "code": code.code, "reason": code.reason})

    try:
        await outbox.run(send_text, close)
    except (OSError, RuntimeError):
        pass  # the client is gone: the reader hears of it, and says what follows
    finally:
        outbox.abandon()


def _drop(scope: Scope, code: CloseCode) -> None:
    drop: Any = scope["extensions"].get(DROP)
    if drop:
        drop(code.code, code.reason)

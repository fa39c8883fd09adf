"""How the frames of `protocol.py` are read and written."""

from collections.abc import Sequence

import msgspec

from chat.protocol.frames import ClientFrame, ErrorCode, Message, ServerFrame, Token


class ProtocolError(Exception):
    """A client's frame is not acceptable; `code` and the message go back to it in an `error` frame."""

    def __init__(self, code: ErrorCode, message: str, message_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message_id = message_id


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[ClientFrame] = msgspec.json.Decoder(ClientFrame)
_TYPES = "message, cancel, auth, ping"


def encode(frame: ServerFrame) -> str:
    """The frame as the text that goes over the wire."""
    return _encoder.encode(frame).decode()


def join(tokens: Sequence[Token]) -> Token:
    """Adjacent tokens of one turn as one, with the last one's `seq`."""
    last = tokens[-1]
    return last if len(tokens) == 1 else Token(last.seq, last.turn_id, "".join(token.content for token in tokens))


def parse(text: str, max_chars: int) -> ClientFrame:
    """Read a client's text frame.

    A frame that does not begin with `{` is the user's own words, so that a terminal client is enough to
    chat. One that does is meant as a frame, and must be one.

    Args:
        text: the text frame.
        max_chars: the longest message content that is taken.

    Raises:
        ProtocolError: it is not a frame of this protocol; says what is wrong and where.
    """
    frame = _parse_object(text) if text.lstrip()[:1] == "{" else Message(text)
    if isinstance(frame, Message):
        _check(frame, max_chars)
    return frame


def _parse_object(text: str) -> ClientFrame:
    try:
        return _decoder.decode(text)
    except msgspec.ValidationError as error:
        wrong = str(error)
        if "`$.type`" in wrong or "missing required field `type`" in wrong:
            raise ProtocolError(ErrorCode.UNKNOWN_TYPE, f"`type` must be one of {_TYPES}.") from None
        raise ProtocolError(ErrorCode.BAD_FIELD, f"{wrong}.") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(ErrorCode.BAD_JSON, f"The frame is not valid JSON: {error}.") from None


def _check(message: Message, max_chars: int) -> None:
    if message.message_id is not None and not 1 <= len(message.message_id) <= 128:
        raise ProtocolError(ErrorCode.BAD_FIELD, "`message_id` must have 1 to 128 characters.")
    if not is_unicode(message.content) or not is_unicode(message.message_id or ""):
        raise ProtocolError(ErrorCode.BAD_FIELD, "The text holds half of a surrogate pair, which is not Unicode.")
    if not message.content.strip():
        raise ProtocolError(ErrorCode.EMPTY_MESSAGE, "The message is empty.", message.message_id)
    if len(message.content) > max_chars:
        raise ProtocolError(
            ErrorCode.MESSAGE_TOO_LONG,
            f"The message has {len(message.content)} characters; the most is {max_chars}.",
            message.message_id,
        )


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8. JSON's escapes can smuggle in what cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""The parts of the two summary functions that only compute: the same in, the same out, for a great many inputs."""

import base64
import json
import random
import subprocess
import unicodedata
from datetime import UTC, datetime
from typing import Any

import pytest

from functions.summary.prompt import messages_for_model, plain_summary
from infra.local.edge import FUNCTION, environment, find_deno
from infra.local.server import CannotStart
from infra.records import Event, SessionEnded
from tests.support.parity import Case, names
from tests.support.supabase import unavailable

FOLDER = FUNCTION.parent
CONVERSATIONS = 400
MODES = [None, "analytical", "casual", "support", "out_of_hours", "Older-Name", "8-ball", "_", "😀", "éclair", ""]
COMPUTE = f"""
import {{ readEnded }} from "{FOLDER.as_uri()}/ended.ts";
import {{ formatMoment }} from "{FOLDER.as_uri()}/moment.ts";
import {{ messagesForModel, plainSummary }} from "{FOLDER.as_uri()}/prompt.ts";

const {{ conversations, bodies }} = await new Response(Deno.stdin.readable).json();
const read = (body) => {{
  try {{
    const ended = readEnded(Uint8Array.from(atob(body), (char) => char.charCodeAt(0)));
    return [ended.sessionId, ended.epoch, formatMoment(ended.endedAt), ended.reason];
  }} catch (error) {{
    return error.constructor.name;
  }}
}};
console.log(JSON.stringify([
  conversations.map(({{ events, mode }}) => [plainSummary(events, mode), messagesForModel(events)]),
  bodies.map(read),
]));
"""
"""What Deno runs: the function's own modules, on what it is given."""


def deno(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run Deno to its end, in the function's folder."""
    try:
        command = [str(find_deno()), *arguments]
    except CannotStart as error:
        unavailable(error)
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=FOLDER, env=environment(0, {}))


def computed(conversations: list[dict[str, Any]], bodies: list[bytes]) -> Any:
    """What the Edge function makes of these: summaries and requests, and messages read."""
    given = {"conversations": conversations, "bodies": [base64.b64encode(body).decode() for body in bodies]}
    ran = deno("eval", "--no-remote", "--no-npm", COMPUTE, stdin=json.dumps(given))
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def event(role: Any, content: str, **metadata: Any) -> Event:
    """An event of some session."""
    return Event(
        event_id="e",
        session_id="s",
        turn_id="t",
        role=role,
        content=content,
        timestamp=datetime.now(UTC),
        metadata=metadata,
    )


def any_conversation(dice: random.Random, alphabet: list[str]) -> list[Event]:
    """A conversation of words made of anything Unicode has, some of them several times."""
    words = ["".join(dice.choices(alphabet, k=dice.randint(1, 5))) for _ in range(dice.randint(1, 9))]
    events = []
    for _ in range(dice.randint(0, 12)):
        text = dice.choice([" ", "", "\n", "-", "_", "'"]).join(dice.choices(words, k=dice.randint(0, 12)))
        tool = dice.choice(["fetch_data", "9", "10", "get_user_stats", "constructor", "__proto__", ""])
        events.append(
            dice.choice(
                [
                    event("user", text * dice.choice([1, 1, 1, 900]), message_id="m"),
                    event("assistant", text, reason="complete"),
                    event("assistant", text, reason="cancelled", interrupted=True),
                    event("assistant", text),
                    event("tool", "", kind="call", name=tool, arguments={}),
                    event("tool", text, kind="result", name=tool, ok=dice.choice([True, False])),
                ]
            )
        )
    return events


def test_any_conversation_is_summarised_alike() -> None:
    """The recorded ones, and hundreds made up of every character there is: the same paragraph, the same request."""
    dice = random.Random(20261124)
    # Python and Deno carry different versions of Unicode; what is assigned does not change its class any more.
    assigned = [char for char in map(chr, range(1, 0x110000)) if unicodedata.category(char)[0] != "C"]
    alphabet = [*assigned, "\x1c", "\x85"]
    letters = list("abcdefghiklmnorstuwyÄöüßΣσςİıДдé😀²Ⅷ٣")
    conversations = [Case.read(name).events("s") for name in names()]
    conversations += [any_conversation(dice, dice.choice([alphabet, letters])) for _ in range(CONVERSATIONS)]
    modes = [dice.choice(MODES) for _ in conversations]
    given = [
        {
            "mode": mode,
            "events": [{"role": it.role, "content": it.content, "metadata": it.metadata} for it in conversation],
        }
        for conversation, mode in zip(conversations, modes, strict=True)
    ]
    results, _ = computed(given, [])
    for conversation, mode, (plain, asked) in zip(conversations, modes, results, strict=True):
        assert plain == plain_summary(conversation, mode)
        assert asked == [{"role": it.role, "content": it.content} for it in messages_for_model(conversation)]


FIELDS = {"session_id": "s-1_A", "epoch": 1, "ended_at": "2026-11-24T12:00:00Z", "reason": "closed", "version": 1}
DAY, NOON = "2026-11-24", "12:00:00"
TIMES = [
    f"{DAY}{t}{NOON}{f}{z}" for t in "Tt _" for f in ("", ".5", ".123456", ".", ",5") for z in ("Z", "z", "+01:00")
]
TIMES += [f"{DAY}T{NOON}{z}" for z in ("", "+01", "+0130", "-00:00", "-23:59", "+24:00", "+01:60", " +01:00", "+1:00")]
TIMES += [f"{DAY}T{NOON}.{f}Z" for f in ("1234564", "1234565", "0000005", "00000049", "9999999", "123456789012345")]
TIMES += [f"{d}T{NOON}Z" for d in ("2026-02-29", "2024-02-29", "2026-02-30", "2026-13-01", "0000-01-01", "0001-01-01")]
TIMES += [f"{d}T{NOON}.000001Z" for d in ("1969-12-31", "9999-12-31", "1900-02-29", "2000-02-29", "26-11-24")]
TIMES += [f"{DAY}T{t}Z" for t in ("24:00:00", "23:59:60", "12:60:00", "12:00", "23:59:59.9999999", "1:00:00")]
TIMES += ["9999-12-31T23:59:59.9999999Z", "", "now", DAY, f" {DAY}T{NOON}Z", f"{DAY}T{NOON}Z ", "２026-11-24T12:00:00Z"]
VALUES: dict[str, list[Any]] = {
    "session_id": ["", "a", "a" * 128, "a" * 129, "a b", "ä", "a\n", "a/b", None, 1, True, ["a"]],
    "epoch": [0, -1, 2**31, 1.0, 1.5, 1e3, "1", True, None, [1]],
    "ended_at": [*TIMES, None, 1767225600, 1767225600.5, True],
    "reason": ["dropped", "shutdown", "crashed", "Closed", "", None, 1],
    "version": [2, 0, 1.0, "1", True, None],
}
TEXTS = [
    *("", "null", "1", '"x"', "[]", "{}", "[{}]", "{,}"),
    *(f"{json.dumps(FIELDS)}{after}" for after in (" \n", "x", ",", "}")),
    *(
        json.dumps(FIELDS)[:-1] + f", {more}}}"
        for more in ('"x": [{}]', '"epoch": 2', '"x": NaN', '"x": 01', '"x": "\t"')
    ),
    *(
        json.dumps(FIELDS)[:-1] + f", {more}}}"
        for more in ("", '"x": "\\ud83d"', '"x": "\\ud83d\\ude00"', '"epoch": 1E0')
    ),
    "\ufeff" + json.dumps(FIELDS),
    json.dumps({"type": "DELETE", "record": FIELDS}),
]


def bodies() -> list[bytes]:
    """Messages good and bad: every field missing, and with every value; and what is hardly JSON."""
    changed = [FIELDS | {name: value} for name, values in VALUES.items() for value in values]
    missing = [{name: value for name, value in FIELDS.items() if name != left_out} for left_out in FIELDS]
    made = [json.dumps(fields, ensure_ascii=False) for fields in [FIELDS, *changed, *missing]] + TEXTS
    return [text.encode() for text in made] + [b"\xff", json.dumps(FIELDS).encode("utf-16"), b'{"x":"\xe4"}']


def read(body: bytes) -> Any:
    """What the Lambda makes of a message."""
    try:
        ended = SessionEnded.from_json(body)
    except ValueError:
        return "Malformed"
    at = ended.ended_at.astimezone(UTC).isoformat(timespec="microseconds")
    return [ended.session_id, ended.epoch, at, ended.reason]


def test_any_message_is_read_alike() -> None:
    """What the one takes the other takes, to the microsecond, and what the one refuses the other refuses."""
    given = bodies()
    _, results = computed([], given)
    wrong = [(body, read(body), by_edge) for body, by_edge in zip(given, results, strict=True) if read(body) != by_edge]
    assert wrong == []
    assert 40 < results.count("Malformed") < len(given) - 40


@pytest.mark.parametrize("command", [["check", "index.ts"], ["lint", "--quiet"], ["fmt", "--check", "--quiet"]])
def test_deno_has_nothing_to_say_against_the_code(command: list[str]) -> None:
    """Types, lint and form, by Deno's own tools."""
    ran = deno(*command)
    assert ran.returncode == 0, ran.stdout + ran.stderr

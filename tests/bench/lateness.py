"""How late a token comes: every word says when it was due and when it was sent, and the client notes when it reads it.

All three times are of the machine's one monotonic clock. A word is due when the provider's pace says, counted from the
moment it read the request, also when the provider itself was late. It has come when the client has read its last byte,
so what the client's own event loop takes is in the number, too. What of it is the provider's own is told apart.
"""

import re
import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

STAMP = re.compile(rb"~([0-9a-f]{12})([0-9a-f]{12})")
BLANK = "~" + 24 * "0"
"""The place of a stamp."""

Arrivals = list[tuple[float, bytes]]
"""What one socket read: when, and what."""


@dataclass
class Lateness:
    """At p99, in milliseconds."""

    whole: float
    """From when words were due to when the client read them."""
    providers: float
    """Of it the provider's own: from when words were due to when it sent them."""
    ours: float
    """And ours: from when words were sent to when the client read them."""


def stamp(due: float) -> bytes:
    """What says, in microseconds, when a word was due and that it is sent now."""
    return b"~%012x%012x" % (int(due * 1e6), int(time.monotonic() * 1e6))


def lateness(sockets: Iterable[Arrivals], words: int) -> Lateness:
    """Of all that these sockets read, which must be so many words."""
    whole, providers, ours = [], [], []
    for arrivals in sockets:
        ends = list(accumulate(len(data) for _, data in arrivals))
        for found in STAMP.finditer(b"".join(data for _, data in arrivals)):
            due, sent = int(found[1], 16) / 1e6, int(found[2], 16) / 1e6
            came = arrivals[bisect_right(ends, found.end() - 1)][0]
            whole.append(came - due)
            providers.append(sent - due)
            ours.append(came - sent)
    assert len(whole) == words, f"{len(whole)} of {words} words arrived"
    return Lateness(*(sorted(times)[int(len(times) * 0.99)] * 1e3 for times in (whole, providers, ours)))

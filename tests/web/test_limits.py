"""Where a connection comes from, and how what it does is counted."""

from typing import Any

import pytest
from limits import RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter

from chat.web.counters import Counters
from chat.web.limits import UNKNOWN, address_of


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("203.0.113.7", 1234), "203.0.113.7"),
        (("2001:db8:1:2:3:4:5:6", 1234), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 1234), "2001:db8:1:2::/64"),
        (("::ffff:203.0.113.7", 1234), "203.0.113.7"),
        (("fe80::1%eth0", 1234), "fe80::/64"),
        (None, UNKNOWN),
        (("", 0), UNKNOWN),
        (("not an address", 0), UNKNOWN),
    ],
)
def test_an_address_is_what_one_subscriber_has(client: Any, address: str) -> None:
    """Of IPv6 that is a /64; an IPv4 address is the same in either form."""
    assert address_of({"type": "http", "client": client}) == address


def test_a_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many in it and no more; it says when it ends, and the next one is a new one."""
    now = 1000.0
    monkeypatch.setattr("chat.web.counters.time.time", lambda: now)
    windows, item = FixedWindowRateLimiter(Counters()), RateLimitItemPerMinute(2)
    assert [windows.hit(item, "ann") for _ in range(3)] == [True, True, False]
    assert windows.hit(item, "ben")
    assert windows.get_window_stats(item, "ann") == (1060.0, 0)
    now = 1061.0
    assert windows.hit(item, "ann")
    assert windows.get_window_stats(item, "ann") == (1121.0, 1)


def test_windows_that_are_over_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many strangers have come, what is kept is in the order of who is there."""
    now = 1000.0
    monkeypatch.setattr("chat.web.counters.time.time", lambda: now)
    monkeypatch.setattr("chat.web.counters.MOST_QUIET", 100)
    counters = Counters()
    for number in range(10_000):
        now += 1
        counters.incr(str(number), 60)
    assert (counters.reset() or 0) <= 200

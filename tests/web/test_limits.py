"""Where a connection comes from, as the limits see it."""

from typing import Any

import pytest

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

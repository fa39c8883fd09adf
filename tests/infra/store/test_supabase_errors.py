"""What a Supabase's answers mean: try again, this row never, or somebody must act."""

import json

import httpx
import pytest

from infra.store import StoreError, StoreMisconfigured, StoreRefused, StoreUnavailable
from infra.store.supabase import is_service_key
from infra.store.supabase_errors import check, sort

HTML = b"<html>Bad Gateway</html>"


def body(code: str | None, message: str = "no") -> bytes:
    return json.dumps({"code": code, "message": message, "details": "Failing row: secret words", "hint": None}).encode()


@pytest.mark.parametrize(
    ("status", "answer", "kind"),
    [
        # The network, the gateway, the server's bad moments
        (500, body("XX000"), StoreUnavailable),
        (502, HTML, StoreUnavailable),
        (503, body("PGRST001"), StoreUnavailable),
        (504, b"", StoreUnavailable),
        (520, HTML, StoreUnavailable),
        (429, b'{"message":"API rate limit exceeded"}', StoreUnavailable),
        (408, b"", StoreUnavailable),
        (500, body("57014"), StoreUnavailable),  # a statement timeout
        (503, body("53300"), StoreUnavailable),  # too many connections
        (400, body("25006"), StoreUnavailable),  # a full disk makes Supabase read-only
        (500, body("40P01"), StoreUnavailable),  # a deadlock
        (503, body("08006"), StoreUnavailable),
        (401, body("PGRST303", "JWT issued at future"), StoreUnavailable),  # clocks apart by a second
        (401, body("PGRST303", "JWT not yet valid"), StoreUnavailable),
        (400, body("", "no connection to the server"), StoreUnavailable),  # a stale pool, after a crash of PostgreSQL
        # Rows
        (409, body("23503"), StoreRefused),
        (409, body("23505"), StoreRefused),
        (400, body("23514"), StoreRefused),
        (400, body("22P02"), StoreRefused),
        (400, body("P0001"), StoreRefused),
        (500, body("54000"), StoreRefused),  # a row over the database's limits
        (400, body("SUP"), StoreRefused),
        (413, HTML, StoreRefused),  # a batch too big for the gateway: halved until it fits
        # What somebody must mend
        (401, body("PGRST301"), StoreMisconfigured),
        (401, body("PGRST303", "JWT expired"), StoreMisconfigured),
        (401, b'{"message":"Invalid API key"}', StoreMisconfigured),
        (401, body("42501"), StoreMisconfigured),
        (403, body("42501"), StoreMisconfigured),
        (404, body("PGRST205"), StoreMisconfigured),
        (404, body("PGRST202"), StoreMisconfigured),
        (400, body("PGRST204"), StoreMisconfigured),
        (404, body("42P01"), StoreMisconfigured),
        (404, HTML, StoreMisconfigured),
        (404, b'{"message":"no Route matched with those values"}', StoreMisconfigured),
        (301, b"", StoreMisconfigured),
        (400, b'["not", "an object"]', StoreMisconfigured),
    ],
)
def test_each_answer_is_of_one_kind(status: int, answer: bytes, kind: type[StoreError]) -> None:
    """Only an error about the row itself is final; whatever is in doubt is retried, so nothing is lost."""
    assert type(sort(status, answer)) is kind


@pytest.mark.parametrize("code", ["23514", "42501", "XX000", "PGRST205"])
def test_no_row_is_quoted(code: str) -> None:
    """PostgreSQL puts the row into an error's details, and values behind a colon: neither gets into our message."""
    error = sort(400, body(code, 'invalid input syntax for type uuid: "secret words"'))
    assert "secret words" not in str(error)
    assert code in str(error)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2", 2.0), ("0.5", 0.5), (None, None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("86400", 60.0), ("-3", 0.0)],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Seconds are kept, up to a minute; the form with a date is passed over."""
    error = sort(429, b"", header)
    assert isinstance(error, StoreUnavailable)
    assert error.retry_after == seconds


async def test_a_good_answer_passes() -> None:
    """Only what is not a success raises."""
    await check(httpx.Response(201))
    with pytest.raises(StoreUnavailable, match="HTTP 503"):
        await check(httpx.Response(503, headers={"Retry-After": "1"}))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("sb_secret_abc", True),
        ("sb_publishable_abc", False),
        ("eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.x", True),
        ("eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.x", False),
        ("eyJhbGciOiJIUzI1NiJ9.W10.x", False),
        ("not.base64!.x", False),
        ("nonsense", False),
    ],
)
def test_a_service_key_is_known_by_its_look(key: str, expected: bool) -> None:
    """The new keys by their prefix, the old ones by the role their token claims."""
    assert is_service_key(key) is expected

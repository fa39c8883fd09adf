"""What a Supabase's answer means for the store: try again, this row never, or somebody must act.

Sorted once, here, where the status, the headers and the body of an answer are still at hand. The codes are SQLSTATEs
(PostgreSQL's manual, appendix A) and PostgREST's own (its documentation, "Errors").
"""

import httpx
import msgspec

from infra.store.base import StoreError, StoreMisconfigured, StoreRefused, StoreUnavailable

MIGRATE = "apply infra/supabase/migrations, with `npx supabase --workdir infra db push --remote` or in the SQL editor"
MOST_RETRY_AFTER_SECONDS = 60.0

_MISSING = ("PGRST202", "PGRST204", "PGRST205", "42P01", "42703", "42883")
"""A function, a column or a table that the migrations make."""
_ROW = ("22", "23", "54", "P0")
"""Classes of SQLSTATE: data that does not fit, constraints, limits, and what a function raised itself."""
_LATER = ("08", "25", "40", "53", "55", "57", "58", "XX")
"""Connections, a read-only server, conflicts, resources, locks, shutdowns, the system, bugs."""


class _Body(msgspec.Struct):
    code: str | int | None = None
    message: str | None = None


async def check(response: httpx.Response) -> None:
    """Let a good answer through; raise for any other. An httpx response hook.

    Raises:
        StoreError: of the kind that says what to do.
    """
    if not response.is_success:
        await response.aread()
        raise sort(response.status_code, response.content, response.headers.get("Retry-After"))


def sort(status: int, body: bytes, retry_after: str | None = None) -> StoreError:
    """The error behind an answer that is not a success.

    The database's `details` are left out: they quote the row.
    """
    try:
        problem = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeError):  # a gateway's page
        problem = _Body()
    code = str(problem.code or "")
    # What PostgreSQL could not read stands behind a colon in its message: `invalid input syntax for type uuid: "…"`.
    words = (problem.message or "").split(': "')[0]
    text = " ".join(part for part in (f"HTTP {status}", code, words) if part)
    if code in _MISSING:
        return StoreMisconfigured(f"Supabase: a migration is missing ({text}): {MIGRATE}")
    if code == "42501":
        return StoreMisconfigured(f"SUPABASE_KEY: this key may not do the server's work ({text}): use the service key")
    if code == "PGRST303" and "expired" not in words:  # the gateway's own token, from a clock that is a second ahead
        return StoreUnavailable(f"Supabase: {text}")
    if problem.code == "":  # a connection of the server's own pool that PostgreSQL has dropped
        return StoreUnavailable(f"Supabase: {text}")
    if status == 401 or code.startswith("28"):
        return StoreMisconfigured(f"SUPABASE_KEY: refused ({text})")
    if _is_of(code, _LATER) or status in (408, 425, 429) or (status >= 500 and not _is_of(code, _ROW)):
        return StoreUnavailable(f"Supabase: {text}", retry_after=_seconds(retry_after))
    if not code and status != 413:  # PostgREST always gives a code
        return StoreMisconfigured(f"SUPABASE_URL: what answers there is not a Supabase project ({text})")
    return StoreRefused(f"Supabase: {text}")


def _is_of(code: str, classes: tuple[str, ...]) -> bool:
    """Whether the code is an SQLSTATE of one of these classes."""
    return len(code) == 5 and code.startswith(classes)


def _seconds(retry_after: str | None) -> float | None:
    """The header as seconds; its other form, a date, is passed over: clocks differ, and our backoff will do."""
    try:
        return min(max(float(retry_after or ""), 0.0), MOST_RETRY_AFTER_SECONDS)
    except ValueError:
        return None

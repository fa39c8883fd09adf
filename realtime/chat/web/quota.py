"""How many tokens a user may take in a day (UTC): counted from what is stored, so that a restart forgets nothing."""

import asyncio
import time
from datetime import UTC, datetime

import msgspec

from chat.metrics import Metrics
from chat.protocol.frames import ErrorCode, Usage
from chat.web.limits import TooMuch
from infra.store import Store, StoreError
from infra.telemetry import get_logger

STALE_SECONDS = 60.0
"""How long what was read is counted on: another container may serve the same user."""
DAY_SECONDS = 86_400
MOST_USERS = 10_000
"""How many users are remembered; the store is asked again for the others."""

log = get_logger("quota")


class _Spent(msgspec.Struct):
    day: int
    tokens: int
    read_at: float


class Quota:
    """What each user has taken today."""

    def __init__(self, store: Store, metrics: Metrics, most_tokens: int) -> None:
        """`most_tokens` may be taken in a day; 0 is no bound, and then nothing is counted or asked."""
        self._store = store
        self._metrics = metrics
        self._most = most_tokens
        self._spent: dict[str, _Spent] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}

    def spend(self, user_id: str, usage: Usage) -> None:
        """The user took this."""
        if self._most and (spent := self._spent.get(user_id)) and spent.day == _today():
            spent.tokens += usage.input_tokens + usage.output_tokens

    async def prepare(self, user_id: str) -> None:
        """Read what the user has taken, if it is not known. A store that fails says nothing of it."""
        if self._most and user_id not in self._spent:
            await asyncio.shield(self._read(user_id))

    def check(self, user_id: str) -> None:
        """Return if the user may go on.

        Raises:
            TooMuch: not before tomorrow.
        """
        if not self._most or not (spent := self._spent.get(user_id)):
            return
        if spent.day != _today() or asyncio.get_running_loop().time() - spent.read_at > STALE_SECONDS:
            self._read(user_id)  # and go on with what is known
        if spent.day == _today() and spent.tokens >= self._most:
            self._metrics.limited.labels("tokens").inc()
            left = (_today() + 1) * DAY_SECONDS - time.time()
            message = "You have used up today's allowance; it begins anew at midnight UTC."
            raise TooMuch("tokens", message, max(1.0, round(left)), ErrorCode.QUOTA_EXCEEDED)

    def _read(self, user_id: str) -> asyncio.Task[None]:
        if user_id not in self._reading:
            self._reading[user_id] = asyncio.create_task(self._ask(user_id))
        return self._reading[user_id]

    async def _ask(self, user_id: str) -> None:
        day = _today()
        before = self._spent.get(user_id)
        counted = before.tokens if before and before.day == day else 0
        try:
            since = datetime.fromtimestamp(day * DAY_SECONDS, UTC)
            stored = await self._store.user_tokens(user_id, since=since)
        except StoreError as error:
            log.warning("quota not read", cause=str(error))
            stored = 0
        finally:
            del self._reading[user_id]
        after = self._spent.get(user_id)
        meanwhile = after.tokens - counted if after and after.day == day else 0
        if user_id not in self._spent and len(self._spent) >= MOST_USERS:
            del self._spent[next(iter(self._spent))]
        # What was just spent may not be stored yet: the larger number is the better one.
        tokens = max(stored + meanwhile, counted + meanwhile)
        self._spent[user_id] = _Spent(day, tokens, asyncio.get_running_loop().time())


def _today() -> int:
    """The number of the day since 1970, which costs less to find than a date: it is asked for every message."""
    return int(time.time() // DAY_SECONDS)

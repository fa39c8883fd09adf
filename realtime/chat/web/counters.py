"""Windows of the `limits` library, kept in memory and on the event loop's own thread.

The library's own memory storage starts a thread every 10 ms to look through all that it holds, and never lets go of a
key: with a thousand users that cost more than their messages did.
"""

import time

from limits.storage import Storage

MOST_QUIET = 10_000
"""How many windows are kept before those that are over are looked for."""


class Counters(Storage):
    """A `limits` storage for fixed windows: each begins with its first hit."""

    STORAGE_SCHEME = None

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[str, tuple[int, float]] = {}
        """How often each was hit, and when it ends."""
        self._tidy_at = MOST_QUIET

    @property
    def base_exceptions(self) -> type[Exception]:
        """What a failure is: there are none."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count a hit; how many there are in this window now."""
        now = time.time()
        count, ends = self._windows.get(key, (0, 0.0))
        if ends <= now:
            if len(self._windows) >= self._tidy_at:
                self._tidy(now)
            count, ends = 0, now + expiry
        self._windows[key] = (count + amount, ends)
        return count + amount

    def get(self, key: str) -> int:
        """How many hits there are in this window."""
        count, ends = self._windows.get(key, (0, 0.0))
        return count if ends > time.time() else 0

    def get_expiry(self, key: str) -> float:
        """When this window ends, in Unix seconds."""
        return self._windows.get(key, (0, time.time()))[1]

    def check(self) -> bool:
        """Whether it works."""
        return True

    def reset(self) -> int | None:
        """Forget all windows; how many there were."""
        number = len(self._windows)
        self._windows.clear()
        return number

    def clear(self, key: str) -> None:
        """Forget this window."""
        self._windows.pop(key, None)

    def _tidy(self, now: float) -> None:
        """Let go of windows that are over; the next time when there are twice as many as are left."""
        self._windows = {key: window for key, window in self._windows.items() if window[1] > now}
        self._tidy_at = max(MOST_QUIET, 2 * len(self._windows))

"""How long to wait before trying again."""

import random


def backoff(attempt: int, *, first: float, most: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 0): doubling, with jitter, up to `most`.

    The jitter, half the span, keeps a thousand clients of a service that comes back from coming back at once.
    """
    span = min(most, first * 2.0 ** min(attempt, 30))
    return span * random.uniform(0.5, 1.0)

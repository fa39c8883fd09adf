"""What all turns of a container work with: the model, the tools, the limits of time, and what counts them."""

from collections.abc import Callable

import msgspec
from msgspec import UNSET

from chat.metrics import Metrics
from chat.protocol.frames import Usage
from chat.tools.registry import Registry
from infra.llm import Finished, Model
from infra.llm.prices import Prices


class TurnKit(msgspec.Struct, frozen=True):
    """What every turn of this container works with, and the time limits."""

    model: Model
    tools: Registry
    stall_seconds: float
    tool_seconds: float
    max_tool_rounds: int
    metrics: Metrics
    prices: Prices = Prices()
    spend: Callable[[str, Usage], None] = lambda user_id, usage: None
    """Told what each user takes."""

    def __post_init__(self) -> None:
        self.metrics.offer(spec.name for spec in self.tools.specs())

    def used(self, user_id: str, finished: Finished) -> Usage:
        """The tokens of one round for this user, counted, and what they cost."""
        cost = self.prices.cost(finished)
        usage = Usage(
            finished.input_tokens,
            finished.output_tokens,
            finished.cached_tokens,
            finished.reasoning_tokens,
            UNSET if cost is None else cost,
        )
        self.metrics.used(finished.model, usage)
        self.spend(user_id, usage)
        return usage

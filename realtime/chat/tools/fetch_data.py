"""A small simulated dataset, for trying out tool calls and for showing results on the page."""

import hashlib
from typing import Annotated, Any

from pydantic import Field

from chat.tools.registry import tool

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@tool
async def fetch_data(
    topic: Annotated[
        str, Field(description="What the figures are about, for example sales", min_length=1, max_length=80)
    ],
    months: Annotated[int, Field(description="How many months, from January on", ge=1, le=12)] = 6,
) -> dict[str, Any]:
    """Fetch monthly figures on a topic. The data are simulated; the same topic always gives the same figures."""
    noise = hashlib.sha256(topic.strip().lower().encode()).digest()
    base = 100 + noise[0]
    rows = [{"month": MONTHS[i], "value": base + noise[i + 1] % 80 + 5 * i} for i in range(months)]
    return {"topic": topic, "unit": "units", "simulated": True, "rows": rows}

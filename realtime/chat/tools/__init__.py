"""The tools a model may call: one file each. A new one is written there and listed here."""

from chat.tools.fetch_data import fetch_data
from chat.tools.get_user_stats import get_user_stats
from chat.tools.registry import Registry


def standard_tools() -> Registry:
    """The tools this container offers."""
    return Registry([fetch_data, get_user_stats])

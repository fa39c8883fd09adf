"""What tokens cost. Prices are the operator's: there are none until a file says them."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from infra.llm.base import Finished
from infra.settings import SettingsError

PER = 1_000_000
"""Prices are for so many tokens, as providers state them."""
DIGITS = 9
"""Decimals of a cost: a token can be as cheap as a millionth of a cent."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model's."""

    input: float
    output: float
    cached: float | None = None

    def __post_init__(self) -> None:
        if not all(0 <= each < float("inf") for each in (self.input, self.output, self.cached or 0)):
            raise ValueError("a price is a number from 0")


class Prices:
    """Those of all models, by name."""

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        self._prices = prices or {}

    def cost(self, finished: Finished) -> float | None:
        """What a reply cost; None where its model has no price."""
        price = self._prices.get(finished.model)
        if price is None:
            return None
        cached = price.input if price.cached is None else price.cached
        fresh = max(0, finished.input_tokens - finished.cached_tokens)
        spent = fresh * price.input + finished.cached_tokens * cached + finished.output_tokens * price.output
        return round(spent / PER, DIGITS)


def load_prices(path: Path | None) -> Prices:
    """Those in the TOML file; none without one.

    Raises:
        SettingsError: it cannot be read, or does not say what it must.
    """
    if path is None:
        return Prices()
    try:
        return Prices(msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")), dict[str, Price]))
    except OSError as error:
        raise SettingsError(f"PRICES_FILE: {path}: cannot be read: {error.strerror}") from None
    except (ValueError, tomllib.TOMLDecodeError) as error:  # one that is not UTF-8 is a ValueError, too
        raise SettingsError(f"PRICES_FILE: {path}: {' '.join(str(error).split())}") from None

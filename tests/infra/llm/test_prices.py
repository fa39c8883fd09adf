"""Prices: what the operator's file says of tokens, and a file that is wrong is named."""

from pathlib import Path

import pytest

from infra.llm import Finished
from infra.llm.prices import load_prices
from infra.settings import SettingsError

EXAMPLE = Path(__file__).resolve().parents[3] / "infra" / "prices.example.toml"


def test_cached_input_has_its_own_price() -> None:
    """Of 1,000,000 tokens in, 400,000 were cached: 0.6 × 0.15 + 0.4 × 0.075 + 0.5 × 0.60."""
    finished = Finished("complete", 1_000_000, 500_000, 400_000, model="gpt-4o-mini")
    assert load_prices(EXAMPLE).cost(finished) == pytest.approx(0.42)


def test_cached_input_without_a_price_costs_what_input_does(tmp_path: Path) -> None:
    """Nobody is promised a discount that the file does not name."""
    (tmp_path / "prices.toml").write_text("[small]\ninput = 1\noutput = 2\n")
    prices = load_prices(tmp_path / "prices.toml")
    assert prices.cost(Finished("complete", 10, 5, 10, model="small")) == pytest.approx(20e-6)


def test_a_model_without_a_price_has_no_cost() -> None:
    """Not even 0, which would be a claim; and without a file no model has one."""
    assert load_prices(EXAMPLE).cost(Finished("complete", 10, 5, model="other")) is None
    assert load_prices(None).cost(Finished("complete", 10, 5, model="gpt-4o-mini")) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[small]\ninput = 1\n", "missing required field `output`"),
        ("[small]\ninput = 1\noutput = -1\n", "a price is a number from 0"),
        ("[small]\ninput = 1\noutput = inf\n", "a price is a number from 0"),
        ('[small]\ninput = "1"\noutput = 1\n', "Expected `float`, got `str`"),
        ("[small]\ninput = 1\noutput = 1\noutpt = 1\n", "unknown field `outpt`"),
        ("[small\n", "Expected ']'"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_file_is_named(text: str | None, problem: str, tmp_path: Path) -> None:
    """One line says which file, where and what."""
    path = tmp_path / "prices.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError) as raised:
        load_prices(path)
    message = str(raised.value)
    assert message.startswith(f"PRICES_FILE: {path}: ")
    assert problem in message
    assert "\n" not in message

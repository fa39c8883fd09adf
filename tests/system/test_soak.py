"""A short run of `make soak`: polite visitors are served while strangers do what they can."""

import tempfile
from pathlib import Path

import pytest

from infra.local.postgres import Postgres
from infra.local.server import CannotStart
from infra.local.supabase import find_node
from tests.soak.run import soak
from tests.support.supabase import free_port, unavailable


@pytest.mark.parametrize("store", ["sqlite", "supabase"])
def test_strangers_cost_a_strangers_share(store: str) -> None:
    """No polite message is refused, none that was accepted is lost, memory stays bounded, and nothing blows up."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:  # one that PostgreSQL's user gets into
        try:
            find_node()
            Postgres(Path(folder), free_port())
        except CannotStart as error:
            unavailable(error)
        assert soak(Path(folder), store, visitors=30, seconds=10).broken() == []

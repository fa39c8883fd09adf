"""The Edge function with a model that fails: it ends the session all the same, and asks once."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.local.edge import Edge
from infra.store.supabase import SupabaseStore
from tests.conftest import make_settings
from tests.support.edge import an_edge, variables
from tests.support.failing_model import FAILURES, FailingModel, Failure
from tests.support.parity import Case, lived
from tests.support.supabase import Supabase
from tests.system.test_edge import called, ended, found


@pytest.fixture(scope="module")
def model() -> Iterator[FailingModel]:
    """The service that the function asks."""
    with FailingModel().running() as service:
        yield service


@pytest.fixture(scope="module")
def edge(supabase: Supabase, model: FailingModel) -> Iterator[Edge]:
    """The function with that model."""
    named = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": model.base_url, "LLM_MODEL": "m"}
    with ExitStack() as ending:
        yield an_edge(ending, variables(supabase) | named)


@pytest.mark.parametrize("failure", [failure for failure in FAILURES if failure != "hangs"])
async def test_a_session_ends_whatever_the_model_does(
    supabase: Supabase, edge: Edge, model: FailingModel, tmp_path: Path, failure: Failure
) -> None:
    """At its first message, with the plain summary, and the caller is told that all is done. A hang takes 20 s."""
    model.failure, model.calls = failure, 0
    store = await SupabaseStore.open(make_settings(tmp_path, **supabase.names()))
    session_id = await lived(store, Case.read("casual"))
    assert await called(edge, ended(session_id)) == (200, {"outcome": "written"})
    assert await called(edge, ended(session_id)) == (200, {"outcome": "repeated"})
    row = await found(store, session_id)
    await store.close()
    assert row.end_time
    assert row.duration is not None
    assert (row.final_summary or "").startswith("A casual conversation of 2 messages")
    assert model.calls == 1

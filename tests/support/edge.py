"""The Edge function for the tests: the real one, in a real Deno, on the Supabase under test."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.edge import Edge
from infra.local.server import CannotStart
from tests.support.client import PATIENCE
from tests.support.supabase import Supabase, free_port, unavailable

SECRET = "a-secret-of-the-tests"


@pytest.fixture(scope="session")
def edge(supabase: Supabase) -> Iterator[Edge]:
    """The function as it is deployed, without a model."""
    with ExitStack() as ending:
        yield an_edge(ending, variables(supabase))


def variables(supabase: Supabase) -> dict[str, str]:
    """What Supabase sets for its functions, and our secret."""
    return {
        "SUPABASE_URL": supabase.url,
        "SUPABASE_SERVICE_ROLE_KEY": supabase.service_key,
        "HANDOFF_SECRET": SECRET,
    }


def an_edge(ending: ExitStack, given: dict[str, str], port: int | None = None) -> Edge:
    """A running function with these variables, on this port or any, stopped by `ending`."""
    folder = Path(tempfile.mkdtemp(prefix="edge-"))
    ending.callback(shutil.rmtree, folder)
    try:
        edge = Edge(folder, port or free_port(), given)
        edge.start()
    except CannotStart as error:
        unavailable(error)
    ending.callback(edge.stop)
    return edge


def call(
    edge: Edge, body: str | bytes, secret: str | None = SECRET, method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    """Send the function a request; status and answer."""
    headers = {"Authorization": f"Bearer {secret}"} if secret is not None else {}
    response = httpx.request(method, edge.url, content=body, headers=headers, timeout=PATIENCE)
    answer: dict[str, Any] = response.json()
    return response.status_code, answer

"""The Edge function with a model that fails, or is particular: it ends the session, and learns how to ask."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

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


class Particular:
    """A service that refuses what it does not know: `refuses` is that, and what it says to it."""

    def __init__(self, refuses: str) -> None:
        self.refuses = refuses
        self.asked: list[dict[str, Any]] = []
        self.base_url = ""

    def answer(self, body: dict[str, Any]) -> tuple[int, str]:
        """What it says to this request."""
        self.asked.append(body)
        if self.refuses == "no_system" and body["messages"][0]["role"] == "system":
            return 400, '{"error": {"message": "Developer instruction is not enabled: role system"}}'
        if self.refuses == "max_tokens" and "max_completion_tokens" in body:
            return 422, '{"detail": [{"type": "extra_forbidden"}]}'
        if self.refuses == "everything":
            return 400, '{"error": {"message": "no"}}'
        return 200, '{"choices": [{"message": {"content": "A summary of its own."}}]}'

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Run it on a free port."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                status, text = service.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
            serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            serving.start()
            yield self
            server.shutdown()
            serving.join()


@pytest.mark.parametrize(
    ("refuses", "said", "calls"),
    [
        ("no_system", "", [2, 1]),
        ("no_system", "no_tools, NO_SYSTEM", [1, 1]),
        ("max_tokens", "", [2, 1]),
        ("max_tokens", "max_tokens", [1, 1]),
        ("everything", "", [1, 1]),
    ],
)
async def test_a_refusal_teaches_once(
    supabase: Supabase, tmp_path: Path, refuses: str, said: str, calls: list[int]
) -> None:
    """What a service does not take is asked for in another way, from then on at once; LLM_QUIRKS says it before."""
    store = await SupabaseStore.open(make_settings(tmp_path, **supabase.names()))
    with Particular(refuses).running() as service, ExitStack() as ending:
        named = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": service.base_url, "LLM_MODEL": "m", "LLM_MAX_TOKENS": "99"}
        edge = an_edge(ending, variables(supabase) | named | {"LLM_QUIRKS": said})
        counted = []
        for _ in calls:
            service.asked.clear()
            session_id = await lived(store, Case.read("casual"))
            assert await called(edge, ended(session_id)) == (200, {"outcome": "written"})
            summary = (await found(store, session_id)).final_summary or ""
            assert (summary == "A summary of its own.") == (refuses != "everything")
            counted.append(len(service.asked))
    await store.close()
    assert counted == calls
    assert "Summarise the conversation" in service.asked[-1]["messages"][0]["content"]

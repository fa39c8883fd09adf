"""The Edge function and services that only call themselves compatible: it makes of them what the Lambda does."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from infra.local.edge import Edge
from infra.store.supabase import SupabaseStore
from tests.conftest import make_settings
from tests.support.edge import an_edge, variables
from tests.support.parity import Case, lived
from tests.support.supabase import Supabase
from tests.system.test_edge import called, ended, found


class Odd:
    """A service that answers as `answer` says, and keeps what it is asked."""

    def __init__(self) -> None:
        self.answer = ""
        self.refuses = ""
        self.bodies: list[dict[str, Any]] = []
        odd = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                odd.bodies.append(body)
                self.send_response(422 if odd.refuses in body else 200)
                self.end_headers()
                self.wfile.write(b"{}" if odd.refuses in body else odd.answer.encode())

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture(scope="module")
def odd() -> Iterator[Odd]:
    """The service that the function asks."""
    service = Odd()
    thread = threading.Thread(target=service.server.serve_forever, args=(0.02,))
    thread.start()
    yield service
    service.server.shutdown()
    service.server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def edge(supabase: Supabase, odd: Odd) -> Iterator[Edge]:
    """The function with that model."""
    url = f"http://127.0.0.1:{odd.server.server_port}/v1"
    named = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": url, "LLM_MODEL": "m", "LLM_MAX_TOKENS": "300"}
    with ExitStack() as ending:
        yield an_edge(ending, variables(supabase) | named)


def whole(content: Any) -> str:
    """A chat completion with this content."""
    return json.dumps({"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}]})


STREAMED = "".join(
    f"data: {json.dumps({'choices': [{'delta': {'content': word}}]})}\n\n" for word in ("They ", "spoke.")
)


@pytest.mark.parametrize(
    "answer",
    [
        whole([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "They spoke."}]),
        whole({"type": "text", "text": "They spoke."}),
        whole("<think>\nHm.\n</think>\n\nThey spoke."),
        f": at work\n\n{STREAMED}data: [DONE]\n\n",
    ],
    ids=["parts", "a part", "thoughts in the text", "a stream"],
)
async def test_its_answer_is_understood(supabase: Supabase, edge: Edge, odd: Odd, tmp_path: Path, answer: str) -> None:
    """Of an answer in another form than OpenAI's the text is the summary, without what was thought."""
    odd.answer, odd.refuses = answer, "nothing"
    store = await SupabaseStore.open(make_settings(tmp_path, **supabase.names()))
    session_id = await lived(store, Case.read("casual"))
    assert await called(edge, ended(session_id)) == (200, {"outcome": "written"})
    row = await found(store, session_id)
    await store.close()
    assert row.final_summary == "They spoke."


async def test_a_limit_by_its_old_name(supabase: Supabase, edge: Edge, odd: Odd, tmp_path: Path) -> None:
    """A service that does not know `max_completion_tokens` is asked again with `max_tokens`."""
    odd.answer, odd.refuses = whole("They spoke."), "max_completion_tokens"
    odd.bodies.clear()
    store = await SupabaseStore.open(make_settings(tmp_path, **supabase.names()))
    session_id = await lived(store, Case.read("casual"))
    assert await called(edge, ended(session_id)) == (200, {"outcome": "written"})
    row = await found(store, session_id)
    await store.close()
    assert row.final_summary == "They spoke."
    assert [body.get("max_tokens") for body in odd.bodies] == [None, 300]

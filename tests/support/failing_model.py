"""A model's service that fails, in each way in which they do: a real HTTP server that counts what it is asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, get_args

Failure = Literal["busy", "no credit", "broken", "hangs", "breaks off", "ends early", "nonsense", "refuses", "a page"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
PASSING = tuple(failure for failure in FAILURES if failure not in ("refuses", "no credit"))
"""Those that may be gone the next time. A lack of credit is a 429 as well as a busy hour, and told by its code."""
STATUS = {"busy": 429, "no credit": 429, "broken": 500, "refuses": 400}
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
HELLO = {**CHUNK, "choices": [{"index": 0, "delta": {"content": "Half of"}, "finish_reason": None}]}
LAST = {**CHUNK, "choices": [{"index": 0, "delta": {"content": " it."}, "finish_reason": "stop"}]}


class FailingModel:
    """The service at `base_url`; `failure` is how it fails now, or None if it does not; `calls` counts its requests."""

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.calls = 0
        self._released = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.calls += 1
                service._answer(self, stream=bool(asked.get("stream")))

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator["FailingModel"]:
        """Serve until the block is left."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield self
        finally:
            self._released.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _answer(self, to: BaseHTTPRequestHandler, *, stream: bool) -> None:
        failure = self.failure
        if failure == "hangs":
            self._released.wait()
        elif failure in STATUS:
            code = "insufficient_quota" if failure == "no credit" else "some_code"
            self._send(to, STATUS[failure], "application/json", json.dumps({"error": {"code": code, "message": "no"}}))
        elif failure == "a page":
            self._send(to, 200, "text/html", "<html>Sign in</html>")
        elif not stream:
            self._send(to, 200, "application/json", _whole(failure))
        else:
            self._send(to, 200, "text/event-stream", _streamed(failure), cut=failure == "breaks off")

    def _send(self, to: BaseHTTPRequestHandler, status: int, kind: str, body: str, *, cut: bool = False) -> None:
        to.send_response(status)
        to.send_header("Content-Type", kind)
        to.send_header("Content-Length", str(len(body) + (1000 if cut else 0)))
        to.end_headers()
        to.wfile.write(body.encode())
        to.close_connection = True


def _whole(failure: Failure | None) -> str:
    if failure is None:
        return json.dumps({**CHUNK, "choices": [{"index": 0, "message": {"content": "Half of it."}}]})
    return "{nonsense" if failure == "nonsense" else json.dumps({**CHUNK, "choices": []})


def _streamed(failure: Failure | None) -> str:
    events = [json.dumps(HELLO)]
    if failure == "nonsense":
        events.append("{nonsense")
    if failure is None:
        events += [json.dumps(LAST), "[DONE]"]
    return "".join(f"data: {event}\n\n" for event in events)

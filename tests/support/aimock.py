"""aimock, a fake OpenAI service that we did not write, run as the Node process it is.

Installed by `npm ci` from package.json; steered through its own control API.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parents[2]
API_KEY = "sk-the-key-aimock-accepts"
START = """
import { LLMock } from "@copilotkit/aimock";
const mock = new LLMock({ port: 0, strict: true, logLevel: "silent", auth: { apiKeys: [process.argv[1]] } });
await mock.start();
console.log(mock.port);
process.stdin.on("end", () => process.exit()).resume();
"""
"""Prints its port when it is ready. It ends with its standard input, so it outlives no test run, however that ends."""


class AIMock:
    """A running aimock."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def reset(self) -> None:
        """Forget every answer and every request."""
        self._control("POST", "/reset")

    def answer(self, match: dict[str, Any], response: dict[str, Any], **options: Any) -> None:
        """Answer requests that match, the earliest match first. In aimock's own words: see its docs on fixtures."""
        self._control("POST", "/fixtures", {"fixtures": [{"match": match, "response": response, **options}]})

    def fail_once(self, status: int) -> None:
        """Answer the next request, whatever it asks, with this status."""
        self._control("POST", "/error", {"status": status, "body": {"message": "not now"}})

    def journal(self) -> list[dict[str, Any]]:
        """Every request since the reset: method, path, headers, body, and how it was answered."""
        entries: list[dict[str, Any]] = self._control("GET", "/journal")
        return entries

    def bodies(self) -> list[dict[str, Any]]:
        """What was asked, request by request, without the notes aimock keeps in it."""
        bodies = [entry["body"] for entry in self.journal()]
        return [{name: value for name, value in body.items() if name[0] != "_"} for body in bodies]

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
            connection.request(method, f"/__aimock{path}", json.dumps(body or {}), headers)
            response = connection.getresponse()
            answer = json.load(response)
        finally:
            connection.close()
        assert response.status == 200, answer
        return answer


@contextmanager
def run_aimock() -> Iterator[AIMock]:
    """Run aimock on a free port. Where Node or the package is missing the test is skipped; in CI it fails."""
    node = shutil.which("node") or _missing("Node.js is not installed")
    if not (ROOT / "node_modules/@copilotkit/aimock").is_dir():
        _missing("aimock is not installed: run `npm ci`")
    command = [node, "--input-type=module", "--eval", START, API_KEY]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            port = process.stdout.readline()
            assert port, "aimock ended before it was ready; what it said is on stderr"
            yield AIMock(int(port))
        finally:
            process.terminate()


def _missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)

"""The deploy of the Edge function: the real Supabase CLI, against a management API that keeps what it gets."""

import email
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from infra.local.edge import environment, find_deno
from infra.local.server import CannotStart
from infra.local.supabase import CLI, ROOT
from tests.support.supabase import unavailable

PROJECT = "abcdefghijklmnopqrst"
FUNCTION = {"id": "1", "slug": "summary", "name": "summary", "status": "ACTIVE", "version": 1}


class ManagementApi:
    """Says yes to everything; `uploads` are the bodies of the deploys, with their content types."""

    def __init__(self) -> None:
        self.uploads: list[tuple[str, bytes]] = []
        uploads = self.uploads

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.startswith(f"/v1/projects/{PROJECT}/functions/deploy?slug=summary"):
                    uploads.append((self.headers["Content-Type"], body))
                self._answer(201)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(FUNCTION | {"created_at": 1, "updated_at": 1}).encode())

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def api() -> Iterator[ManagementApi]:
    """Such an API."""
    api = ManagementApi()
    yield api
    api.close()


def test_the_cli_uploads_all_of_the_function(api: ManagementApi, tmp_path: Path) -> None:
    """What arrives is the function with every file it imports, open to callers that have no user's token."""
    if not CLI.exists():
        unavailable(CannotStart("the Supabase CLI is not installed: `npm ci`"))
    profile = tmp_path / "profile.yaml"
    profile.write_text(f"name: test\napi_url: {api.url}\ndashboard_url: {api.url}\nproject_host: localhost\n")
    of_nobody = {"HOME": str(tmp_path), "SUPABASE_ACCESS_TOKEN": f"sbp_{'0' * 40}"}
    quiet = {"SUPABASE_TELEMETRY_DISABLED": "1", "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "infra.local.edge_deploy", f"--remote={PROJECT}", "--yes"]
    command += ["--profile", str(profile)]
    ran = subprocess.run(command, cwd=ROOT, env=os.environ | of_nobody | quiet, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    ((content_type, body),) = api.uploads
    message = email.message_from_bytes(f"Content-Type: {content_type}\n\n".encode() + body)
    metadata: dict[str, Any] = {}
    for part in message.get_payload():
        assert isinstance(part, email.message.Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        if name := part.get_filename():
            file = tmp_path / "uploaded" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        else:
            metadata = json.loads(content)
    assert (metadata["name"], metadata["verify_jwt"]) == ("summary", False)
    entrypoint = tmp_path / "uploaded" / metadata["entrypoint_path"]
    checked = subprocess.run(
        [str(find_deno()), "check", str(entrypoint)], env=environment(0, {}), capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr

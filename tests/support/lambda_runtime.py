"""A stand-in for Lambda's service: it feeds a function, run by AWS's own runtime client, through the Runtime API.

The client is the one in Lambda's managed runtimes. The function's process sees its zip, that client and boto3, which
the managed runtime has as well, and nothing else of this machine's packages.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

API = "/2018-06-01/runtime/"
RUNTIME = ("awslambdaric", "simplejson", "snapshot-restore-py")
"""What Lambda's managed runtime brings; and, for the function to import:"""
RUNTIME_BOTO = ("boto3", "botocore", "s3transfer", "jmespath", "python-dateutil", "six", "urllib3")
PATIENCE = 30.0


class FunctionError(Exception):
    """The function could not be loaded, or raised."""


class LambdaFunction:
    """A running function. Call it as a handler is called."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self.answers: queue.Queue[Any] = queue.Queue()
        self.died = Event()

    def __call__(self, event: dict[str, Any], context: Any = None) -> dict[str, Any]:
        """Invoke it, and wait for what it returns.

        Raises:
            FunctionError: it raised, or could not be loaded.
        """
        self.events.put((str(uuid4()), event))
        deadline = time.monotonic() + PATIENCE
        answer: Any = None
        while answer is None:
            try:
                answer = self.answers.get(timeout=0.2)
            except queue.Empty:
                if self.died.is_set() or time.monotonic() > deadline:
                    raise FunctionError("it died, or is too slow; see its log") from None
        if isinstance(answer, FunctionError):
            raise answer
        returned: dict[str, Any] = answer
        return returned


def _api(function: LambdaFunction) -> type[BaseHTTPRequestHandler]:
    class Api(BaseHTTPRequestHandler):
        """The Runtime API (Lambda's developer guide, "Using the Lambda runtime API")."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == f"{API}invocation/next", self.path
            request_id, event = function.events.get()
            headers = {
                "Lambda-Runtime-Aws-Request-Id": request_id,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + PATIENCE) * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:123456789012:function:deployed",
                "Lambda-Runtime-Trace-Id": "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0",
                "Content-Type": "application/json",
            }
            self._answer(200, event, headers)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            failed = not self.path.endswith("/response")
            function.answers.put(FunctionError(body) if failed else body)
            self._answer(202, {})

        def _answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(payload))} | dict(headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Api


@contextmanager
def running_function(task: Path, handler: str, environment: Mapping[str, str], logs: Path) -> Iterator[LambdaFunction]:
    """Run the function unpacked at `task` as Lambda would; what it prints goes to the file `logs`."""
    runtime = task.parent / "runtime"
    install(runtime, RUNTIME + RUNTIME_BOTO)
    function = LambdaFunction()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _api(function))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    reserved = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(task), str(runtime)]),
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}",
        "AWS_LAMBDA_FUNCTION_NAME": "summary",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "LAMBDA_TASK_ROOT": str(task),
        "_HANDLER": handler,
    }
    with logs.open("wb") as output:
        process = subprocess.Popen(
            # -S: without the packages of this machine.
            [sys._base_executable, "-S", "-m", "awslambdaric", handler],  # type: ignore[attr-defined]
            cwd=task,
            env=dict(environment) | reserved,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

        def watch() -> None:
            process.wait()
            function.died.set()

        Thread(target=watch, daemon=True).start()
        try:
            yield function
        finally:
            process.kill()
            process.wait()
            server.shutdown()
            server.server_close()


def install(folder: Path, names: tuple[str, ...]) -> None:
    """Copy there what is installed of these distributions."""
    for name in names:
        found = distribution(name)
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            if ".." in file.parts or not source.is_file():
                continue
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / file)

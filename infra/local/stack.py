"""The whole product on this machine, by one command: the container, an SQS endpoint, and the functions.

It starts the halves by name, as the cloud does, and imports neither: the container as a process, the functions by the
handler strings of `serverless.yml`.
"""

import asyncio
import http.client
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import boto3
import yaml

from infra.handoff import sqs_client
from infra.llm.probe import try_model
from infra.local.event_source import EventSource, Handler
from infra.local.server import is_listening
from infra.local.timer import Timer
from infra.port import taken
from infra.proxy import prepare_proxies
from infra.settings import Settings, SettingsError, load_settings
from infra.telemetry import configure_logging

ROOT = Path(__file__).resolve().parents[2]
STACK = "realtime-ai-backend-local"
QUEUE_PATH = f"123456789012/{STACK}-session-ended"
"""The emulator's one account, and the queue's name in `infra/aws/queues.yml`."""
START_SECONDS = 30.0
CONTAINER_STOP_SECONDS = 3.5
LOCAL_DRAIN_SECONDS = 0.5
"""How long running replies may take to finish after Ctrl-C: nobody at a terminal wants to wait for them."""
DRAIN_SECONDS = 0.5
"""Together with one poll of the queue, these stay within the five seconds that a stop may take."""
SWEEP_SECONDS = 5.0
"""The schedule in `serverless.yml` is slower. Here somebody is waiting, and the store is a local file."""

MOTO_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
"""The emulator accepts any credentials, but boto3 needs some. Real ones should not be sent there."""


def main() -> int:
    """Run the local stack until SIGINT or SIGTERM, or until the container ends by itself."""
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_format)
    try:
        prepare_proxies(settings)
        if is_listening(settings.port):
            raise SettingsError(taken(settings.host, settings.port))
    except SettingsError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGHUP, stop)  # the terminal was closed
    return run(settings, stopping)


def run(settings: Settings, stopping: threading.Event) -> int:
    """Run the local stack until `stopping` is set; the container's exit code if it ends before."""
    if not settings.handoff_url:  # the Edge function is told directly, and needs no queue
        os.environ |= MOTO_ENVIRONMENT
        with socket.create_server(("127.0.0.1", 0)) as probe:
            endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
        queue_url = f"{endpoint}/{QUEUE_PATH}"
        settings = settings.model_copy(update={"aws_endpoint_url": endpoint, "disconnect_queue_url": queue_url})
        os.environ |= {"AWS_ENDPOINT_URL": endpoint, "DISCONNECT_QUEUE_URL": queue_url}
    os.environ |= pace(settings)
    # The container comes first: it takes about as long to start as the emulator, and it is the one that may fail.
    container = start_container(settings)
    with ExitStack() as ending:
        ending.callback(stop_container, container)
        source = start_function(settings, ending) if settings.disconnect_queue_url else None
        if wait_until_healthy(settings, container, stopping):
            if source:
                source.start()
            timer = Timer(load_handler("sweep"), SWEEP_SECONDS)
            ending.callback(timer.stop)
            timer.start()  # with what the last stack left open, if it was killed
            print(_welcome(settings), flush=True)
            if settings.llm_provider != "demo":  # beside the rest: it may take its time, and a stop must not wait
                threading.Thread(target=_say_whether_it_answers, args=(settings,), daemon=True).start()
            while container.poll() is None and not stopping.wait(0.2):
                pass
            timer.stop()
            # What ends in the container is announced on the queue, and summarised from there: so it stops first.
            stop_container(container)
    return 0 if stopping.is_set() else container.returncode or 1


def pace(settings: Settings) -> dict[str, str]:
    """Settings by which a killed stack is swept soon after its next start, unless the user has set their own.

    Only for SQLite: a Supabase may be shared with containers elsewhere, whose slower heartbeats would look dead.
    """
    if settings.supabase_url or settings.model_fields_set & {"heartbeat_seconds", "dead_after_seconds"}:
        return {}
    return {"HEARTBEAT_SECONDS": "1", "DEAD_AFTER_SECONDS": "5"}


def start_function(settings: Settings, ending: ExitStack) -> EventSource:
    """Start the emulator, create the queues, and put the function behind them, to be stopped by `ending`."""
    from moto.server import ThreadedMotoServer  # slow to import: while the container starts

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request, every second
    port = urlsplit(settings.aws_endpoint_url or "").port or 0
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    moto.start()
    ending.callback(moto.stop)
    queue_url = create_queues(settings)
    source = EventSource(sqs_client(settings), queue_url, load_handler("summary"))
    ending.callback(source.stop, DRAIN_SECONDS)
    return source


def create_queues(settings: Settings) -> str:
    """Create the stack of `infra/aws/queues.yml`; the URL of its queue."""
    cloudformation = boto3.client(
        "cloudformation", region_name=settings.aws_region, endpoint_url=settings.aws_endpoint_url
    )
    cloudformation.create_stack(StackName=STACK, TemplateBody=(ROOT / "infra/aws/queues.yml").read_text())
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    # The emulator names its queues as AWS does; what it answers at is the endpoint.
    queue_url = f"{settings.aws_endpoint_url}{urlsplit(str(outputs['SessionEndedQueueUrl'])).path}"
    assert queue_url.endswith(QUEUE_PATH), f"{queue_url} is not where the container sends"
    return queue_url


def load_handler(function: str) -> Handler:
    """The function's handler, found as Lambda finds it: by the string in `serverless.yml`."""
    config = yaml.safe_load((ROOT / "serverless.yml").read_text())
    module, name = config["functions"][function]["handler"].rsplit(".", 1)
    handler: Handler = getattr(importlib.import_module(module.replace("/", ".")), name)
    return handler


def start_container(settings: Settings) -> subprocess.Popen[bytes]:
    """Start the realtime container's process, in a session of its own: Ctrl-C is ours to pass on.

    It goes when we do, however we go: it reads the one end of a pipe whose other end nobody has but us.
    """
    theirs, _ours = os.pipe()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "realtime"), str(ROOT)])}
    if "drain_seconds" not in settings.model_fields_set:
        environment |= {"DRAIN_SECONDS": str(LOCAL_DRAIN_SECONDS)}
    environment["PARENT_FD"] = str(theirs)
    container = subprocess.Popen(
        [sys.executable, "-m", "chat"], env=environment, start_new_session=True, pass_fds=[theirs]
    )
    os.close(theirs)
    return container


def wait_until_healthy(settings: Settings, container: subprocess.Popen[bytes], stopping: threading.Event) -> bool:
    """Whether the container answers; False if it ended, or a stop was asked for, before it did."""
    deadline = time.monotonic() + START_SECONDS
    while container.poll() is None and not stopping.wait(0.05):
        try:
            with urllib.request.urlopen(f"{_base_url(settings)}/health", timeout=1):
                return True
        except urllib.error.HTTPError as error:
            error.close()
        except (OSError, http.client.HTTPException):
            pass
        if time.monotonic() > deadline:
            print(f"cannot start: no answer from the container within {START_SECONDS:g} s", file=sys.stderr)
            return False
    return False


def stop_container(container: subprocess.Popen[bytes]) -> None:
    """Ask it to end its sessions and go; insist after a while."""
    container.terminate()
    try:
        container.wait(CONTAINER_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        container.kill()
        container.wait()


def _say_whether_it_answers(settings: Settings) -> None:
    print(f"  model {settings.model}: {asyncio.run(try_model(settings))}", flush=True)


def _base_url(settings: Settings) -> str:
    host = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else settings.host
    return f"http://{host}:{settings.port}"


def _welcome(settings: Settings) -> str:
    base = _base_url(settings)
    lines: dict[str, Any] = {
        "page": f"{base}/",
        "socket": f"{base.replace('http', 'ws', 1)}/ws/session/{{session_id}}",
        "health": f"{base}/health",
        "queue": f"{settings.disconnect_queue_url}  (SQS, emulated by moto)",
        "data": settings.supabase_url or settings.data_dir.resolve() / "realtime.db",
        "model": settings.model,
        "auth": f"{settings.auth_kind}, {settings.auth_reason}",
    }
    if settings.handoff_url:
        lines["queue"] = f"none: ended sessions are handed to {settings.handoff_url}"
    return "\n".join(
        ["", "Realtime AI Backend is ready."] + [f"  {k:<8}{v}" for k, v in lines.items()] + ["Ctrl-C ends it.", ""]
    )


if __name__ == "__main__":
    sys.exit(main())

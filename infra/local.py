"""The whole product on this machine, by one command: the container, an SQS endpoint, and the function behind it.

It starts the halves by name, as the cloud does, and imports neither: the container as a process, the function by the
handler string of `serverless.yml`.
"""

import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

import boto3
import yaml

from infra.event_source import EventSource, Handler
from infra.handoff import sqs_client
from infra.settings import Settings, SettingsError, load_settings
from infra.telemetry import configure_logging

ROOT = Path(__file__).resolve().parents[1]
STACK = "realtime-ai-backend-local"
START_SECONDS = 30.0
CONTAINER_STOP_SECONDS = 3.5
DRAIN_SECONDS = 0.5
"""Together with one poll of the queue these stay within the five seconds in which all must be gone."""

MOTO_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
"""The emulator takes any credentials, but boto3 wants some; real ones have no business there."""


def main() -> int:
    """Run the local stack until SIGINT or SIGTERM, or until the container ends by itself."""
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    configure_logging(settings.log_level, settings.log_format)
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return run(settings, stopping)


def run(settings: Settings, stopping: threading.Event) -> int:
    """Run the local stack until `stopping` is set; the container's exit code if it ends before."""
    from moto.server import ThreadedMotoServer  # slow to import: after the settings are known to be right

    os.environ |= MOTO_ENVIRONMENT
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request, every second
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    endpoint = "http://{}:{}".format(*moto.get_host_and_port())
    settings = settings.model_copy(update={"aws_endpoint_url": endpoint})
    queue_url = create_queues(settings)
    container = start_container(endpoint, queue_url)
    source = EventSource(sqs_client(settings), queue_url, load_handler("summary"))  # while the container starts
    try:
        if wait_until_healthy(settings, container, stopping):
            source.start()
            print(_welcome(settings, queue_url), flush=True)
            while container.poll() is None and not stopping.wait(0.2):
                pass
        return 0 if stopping.is_set() else container.wait()
    finally:
        # In this order: what ends in the container is announced on the queue, and summarised from there.
        stop_container(container)
        source.stop(DRAIN_SECONDS)
        moto.stop()


def create_queues(settings: Settings) -> str:
    """Create the stack of `infra/aws/queues.yml`; the URL of its queue."""
    cloudformation = boto3.client(
        "cloudformation", region_name=settings.aws_region, endpoint_url=settings.aws_endpoint_url
    )
    cloudformation.create_stack(StackName=STACK, TemplateBody=(ROOT / "infra/aws/queues.yml").read_text())
    (stack,) = cloudformation.describe_stacks(StackName=STACK)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    # The emulator names its queues as AWS does; what it answers at is the endpoint.
    path = urllib.parse.urlsplit(outputs["SessionEndedQueueUrl"]).path
    return f"{settings.aws_endpoint_url}{path}"


def load_handler(function: str) -> Handler:
    """The function's handler, found as Lambda finds it: by the string in `serverless.yml`."""
    config = yaml.safe_load((ROOT / "serverless.yml").read_text())
    module, name = config["functions"][function]["handler"].rsplit(".", 1)
    handler: Handler = getattr(importlib.import_module(module.replace("/", ".")), name)
    return handler


def start_container(endpoint: str, queue_url: str) -> subprocess.Popen[bytes]:
    """Start the realtime container's process, in a session of its own: Ctrl-C is ours to pass on."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "realtime"), str(ROOT)]),
        "AWS_ENDPOINT_URL": endpoint,
        "DISCONNECT_QUEUE_URL": queue_url,
    }
    return subprocess.Popen([sys.executable, "-m", "chat"], env=environment, start_new_session=True)


def wait_until_healthy(settings: Settings, container: subprocess.Popen[bytes], stopping: threading.Event) -> bool:
    """Whether the container answers; False if it ended, or a stop was asked for, before it did."""
    deadline = time.monotonic() + START_SECONDS
    while container.poll() is None and not stopping.wait(0.05):
        try:
            with urllib.request.urlopen(f"{_base_url(settings)}/health", timeout=1):
                return True
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
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


def _base_url(settings: Settings) -> str:
    host = "localhost" if settings.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else settings.host
    return f"http://{host}:{settings.port}"


def _welcome(settings: Settings, queue_url: str) -> str:
    base = _base_url(settings)
    lines: dict[str, Any] = {
        "page": f"{base}/",
        "socket": f"{base.replace('http', 'ws', 1)}/ws/session/{{session_id}}",
        "health": f"{base}/health",
        "queue": f"{queue_url}  (SQS, emulated by moto)",
        "data": settings.data_dir.resolve() / "realtime.db",
        "model": settings.llm_provider,
    }
    return "\n".join(
        ["", "Realtime AI Backend is ready."] + [f"  {k:<8}{v}" for k, v in lines.items()] + ["Ctrl-C ends it.", ""]
    )


if __name__ == "__main__":
    sys.exit(main())

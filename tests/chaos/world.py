"""The processes that chaos kills: each real, each on a port that stays, each started again as an orchestrator would."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.handoff import sqs_client
from infra.local.postgres import Postgres
from infra.local.server import Server, is_listening
from infra.local.stack import MOTO_ENVIRONMENT, QUEUE_PATH, create_queues
from infra.local.supabase import STANDALONE, Lite, push_migrations
from infra.settings import Settings
from tests.bench.servers import resident_bytes
from tests.support.supabase import free_port

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "DEMO_TOKENS_PER_SECOND": "200",
    "HEARTBEAT_SECONDS": "0.5",
    "DEAD_AFTER_SECONDS": "3",
    "RECONCILE_SECONDS": "3",
    "LINGER_SECONDS": "2",
    "LOG_LEVEL": "info",
}
VISIBILITY_SECONDS = "2"
"""How long a message of a killed function stays away: the template's three minutes are too long to wait for."""


class Process(Server):
    """One of our Python processes."""

    def __init__(self, name: str, folder: Path, port: int, arguments: list[str], environment: dict[str, str]) -> None:
        super().__init__(port, folder / f"{name}.log")
        self._folder = folder  # where no .env is
        self._arguments = arguments
        self._environment = environment
        self._ready: Callable[[], bool] = lambda: is_listening(port)

    def without_port(self) -> "Process":
        """The same for a process that listens on nothing."""
        self._ready = lambda: True
        return self

    def resident_bytes(self) -> int:
        """The memory it holds; it must run."""
        assert self._process
        return resident_bytes(self._process.pid)

    def start(self) -> None:
        """Start it."""
        self._spawn([sys.executable, "-m", *self._arguments], self._ready, cwd=self._folder, env=self._environment)


class Queue(Process):
    """The SQS server. Killed, it forgets everything, its queues too: nobody else would, but so much the worse."""

    def start(self) -> None:
        """Start it, and create its queues."""
        super().start()
        settings = Settings(aws_endpoint_url=f"http://127.0.0.1:{self.port}")
        url = create_queues(settings)
        sqs = sqs_client(settings)
        sqs.set_queue_attributes(
            QueueUrl=url, Attributes={"VisibilityTimeout": VISIBILITY_SECONDS, "RedrivePolicy": ""}
        )
        sqs.close()


def start_supabase(folder: Path, ending: ExitStack) -> tuple[Postgres, Lite]:
    """A PostgreSQL with our migrations, and the Supabase before it; `ending` stops both."""
    folder.chmod(0o755)  # PostgreSQL does not run as root: its user must get in
    postgres = Postgres(folder, free_port())
    ending.callback(postgres.stop, signal.SIGQUIT)
    postgres.start()
    postgres.run("postgres", STANDALONE)
    push_migrations(postgres.url())
    lite = Lite(folder, postgres.url(), free_port())
    ending.callback(lite.stop, signal.SIGKILL)
    lite.start()
    return postgres, lite


class World:
    """All of it. `victims` may be killed at any time; each comes back by `revive`."""

    def __init__(self, ending: ExitStack) -> None:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        self.folder = folder
        self.postgres, lite = start_supabase(folder, ending)
        port, queue_port = free_port(), free_port()
        os.environ |= MOTO_ENVIRONMENT
        queue_url = f"http://127.0.0.1:{queue_port}"
        environment = {
            **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")},
            **MOTO_ENVIRONMENT,
            **ENVIRONMENT,
            "PYTHONPATH": f"{ROOT / 'realtime'}{os.pathsep}{ROOT}",
            "PORT": str(port),
            "DATA_DIR": str(folder / "data"),
            "SUPABASE_URL": lite.url,
            "SUPABASE_KEY": lite.service_key,
            "AWS_ENDPOINT_URL": queue_url,
            "DISCONNECT_QUEUE_URL": f"{queue_url}/{QUEUE_PATH}",
        }
        queue = Queue("queue", folder, queue_port, ["moto.server", "-p", str(queue_port)], environment)
        container = Process("container", folder, port, ["chat"], environment)
        function = Process("function", folder, 0, ["tests.chaos.function"], environment).without_port()
        self.url = f"ws://127.0.0.1:{port}"
        self.victims: dict[str, Any] = {"queue": queue, "container": container, "function": function, "store": lite}
        self._locks = {name: threading.Lock() for name in self.victims}
        for name in ("queue", "container", "function"):
            ending.callback(self.victims[name].stop, signal.SIGKILL)
            self.victims[name].start()

    def kill(self, name: str) -> None:
        """Kill -9 and start again; returns when it is back. The same victim is not killed while it starts."""
        with self._locks[name]:
            self.victims[name].stop(signal.SIGKILL)
            self.victims[name].start()

    def messages_waiting(self) -> int:
        """How many messages the queue still holds; 1 if it cannot say."""
        port = self.victims["queue"].port
        sqs = boto3.client(
            "sqs",
            region_name="us-east-1",
            endpoint_url=f"http://127.0.0.1:{port}",
            config=Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1}),
        )
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        try:
            told = sqs.get_queue_attributes(QueueUrl=f"http://127.0.0.1:{port}/{QUEUE_PATH}", AttributeNames=names)
        except (BotoCoreError, ClientError):
            return 1
        finally:
            sqs.close()
        return sum(int(value) for value in told["Attributes"].values())

"""A real SQS protocol server with the product's own queues, on a port of its own."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from infra.handoff import sqs_client
from infra.local.stack import MOTO_ENVIRONMENT, create_queues
from infra.settings import Settings


class Queue:
    """The stack of `infra/aws/queues.yml` behind an endpoint, and the few things a test does with it."""

    def __init__(self, endpoint: str) -> None:
        self.settings = Settings(aws_endpoint_url=endpoint)
        self.url = create_queues(self.settings)
        self.dead_url = f"{self.url}-dead"
        self.sqs = sqs_client(self.settings)

    def send(self, body: str) -> str:
        """Put a message on the queue; its id."""
        return str(self.sqs.send_message(QueueUrl=self.url, MessageBody=body)["MessageId"])

    def bodies(self, url: str | None = None, wait_seconds: int = 0) -> list[str]:
        """Take all messages that are visible, and delete them."""
        bodies = []
        while True:
            received = self.sqs.receive_message(
                QueueUrl=url or self.url, MaxNumberOfMessages=10, WaitTimeSeconds=wait_seconds
            ).get("Messages", [])
            for message in received:
                bodies.append(message["Body"])
                self.sqs.delete_message(QueueUrl=url or self.url, ReceiptHandle=message["ReceiptHandle"])
            if not received:
                return bodies
            wait_seconds = 0

    def counts(self, url: str | None = None) -> tuple[int, int]:
        """How many messages wait, and how many are being handled."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.sqs.get_queue_attributes(QueueUrl=url or self.url, AttributeNames=names)["Attributes"]
        return int(answer[names[0]]), int(answer[names[1]])

    def retry_at_once(self) -> None:
        """Let failed messages come back without the three minutes a deployed queue waits."""
        self.sqs.set_queue_attributes(QueueUrl=self.url, Attributes={"VisibilityTimeout": "0"})


@contextmanager
def running_queue(port: int = 0) -> Iterator[Queue]:
    """Run the server and create the queues."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    try:
        yield Queue(endpoint)
    finally:
        _forget_everything(endpoint)
        server.stop()


def _forget_everything(endpoint: str) -> None:
    """The emulator's state lives in the process, not in the server: the next test must not find it."""
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")):
        pass


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    """The product's queue on a real SQS endpoint, empty."""
    for name, value in MOTO_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with running_queue() as running:
        yield running

"""What Lambda's event source mapping does for an SQS queue, on this machine.

Receive a batch, call the handler with Lambda's SQS event, delete what succeeded, leave what failed: the queue shows
that again when its visibility timeout is over, and moves it to the dead-letter queue after `maxReceiveCount` tries.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from infra.handoff import SQS_BATCH
from infra.telemetry import get_logger

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

POLL_SECONDS = 1
"""How long one receive waits for a message, and so how long a stop may take."""
RETRY_SECONDS = 1.0

log = get_logger("event-source")


class EventSource:
    """A thread that feeds one queue to one handler."""

    def __init__(self, sqs: Any, queue_url: str, handler: Handler) -> None:
        """`sqs` is a boto3 SQS client."""
        self._sqs = sqs
        self._queue_url = queue_url
        self._handler = handler
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="event-source", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self, drain_seconds: float) -> None:
        """Take what the queue still holds, for so long at the most, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=POLL_SECONDS + drain_seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.poll(POLL_SECONDS)
            except (BotoCoreError, ClientError) as error:
                log.warning("queue unavailable, will retry", cause=str(error))
                self._stopping.wait(RETRY_SECONDS)
        try:
            while self.poll(wait_seconds=0):
                pass
        except (BotoCoreError, ClientError) as error:
            log.error("queue not drained", cause=str(error))

    def poll(self, wait_seconds: int) -> int:
        """Handle one batch.

        Returns:
            The number of messages received.
        """
        received = self._sqs.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=SQS_BATCH,
            WaitTimeSeconds=wait_seconds,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        messages = received.get("Messages", [])
        if messages:
            failed = self._handle(messages)
            done = [message for message in messages if message["MessageId"] not in failed]
            for message in done:
                self._sqs.delete_message(QueueUrl=self._queue_url, ReceiptHandle=message["ReceiptHandle"])
        return len(messages)

    def _handle(self, messages: list[dict[str, Any]]) -> set[str]:
        """The ids of the messages that failed: all of them if the handler did."""
        started = time.monotonic()
        try:
            answer = self._handler({"Records": [_record(message, self._queue_url) for message in messages]}, None)
            failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        except Exception:
            log.exception("handler failed", messages=len(messages))
            failed = {message["MessageId"] for message in messages}
        took = round((time.monotonic() - started) * 1000)
        log.info("batch handled", messages=len(messages), failed=len(failed), took_ms=took)
        return failed


def _record(message: dict[str, Any], queue_url: str) -> dict[str, Any]:
    """One record of the event, as Lambda sends it (its developer guide, "Using Lambda with Amazon SQS")."""
    account, name = queue_url.rstrip("/").split("/")[-2:]
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message.get("Attributes", {}),
        "messageAttributes": message.get("MessageAttributes", {}),
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:local:{account}:{name}",
        "awsRegion": "local",
    }

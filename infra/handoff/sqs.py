"""The hand-off onto an SQS queue."""

import asyncio
from collections.abc import Sequence
from typing import Any

from infra.handoff.base import HandoffUnavailable
from infra.records import SessionEnded
from infra.settings import Settings


class SqsHandoff:
    """A `Handoff` onto an SQS queue. boto3 is synchronous, so each call runs on a thread."""

    def __init__(self, client: Any, queue_url: str) -> None:
        self._client = client
        self._queue_url = queue_url

    @classmethod
    async def connect(cls, settings: Settings) -> "SqsHandoff":
        """Build the client; no request is made. Credentials come from AWS's own chain."""
        assert settings.disconnect_queue_url
        client = await asyncio.to_thread(sqs_client, settings)
        return cls(client, settings.disconnect_queue_url)

    async def send(self, ended: Sequence[SessionEnded]) -> list[SessionEnded]:
        """See `Handoff.send`."""
        return await asyncio.to_thread(self._send_batch, ended)

    def _send_batch(self, batch: Sequence[SessionEnded]) -> list[SessionEnded]:
        from botocore.exceptions import BotoCoreError, ClientError

        entries = [{"Id": str(number), "MessageBody": ended.to_json()} for number, ended in enumerate(batch)]
        try:
            answer = self._client.send_message_batch(QueueUrl=self._queue_url, Entries=entries)
        except (BotoCoreError, ClientError) as error:
            raise HandoffUnavailable(f"SQS: {error}") from error
        return [batch[int(failed["Id"])] for failed in answer.get("Failed", [])]

    async def close(self) -> None:
        """See `Handoff.close`."""
        await asyncio.to_thread(self._client.close)


def sqs_client(settings: Settings) -> Any:
    """A boto3 SQS client with short timeouts and no retries of its own: the caller has a better backoff."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "sqs",
        region_name=settings.aws_region,
        endpoint_url=settings.aws_endpoint_url,
        config=Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 1}),
    )

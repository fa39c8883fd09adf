"""An SQS batch as one ASGI request, and the answer as Lambda's partial batch response.

Mangum speaks HTTP events; this is one of its custom handlers, for SQS.
"""

import json
from typing import Any

from mangum.types import LambdaConfig, LambdaContext, LambdaEvent, Response, Scope

from functions.summary.app import SQS_PATH


class SqsBatch:
    """One batch. Without `ReportBatchItemFailures` in the mapping, Lambda would delete what we say failed."""

    @classmethod
    def infer(cls, event: LambdaEvent, context: LambdaContext, config: LambdaConfig) -> bool:
        """Whether the event is an SQS batch."""
        records = event.get("Records")
        return isinstance(records, list) and all(record.get("eventSource") == "aws:sqs" for record in records)

    def __init__(self, event: LambdaEvent, context: LambdaContext, config: LambdaConfig) -> None:
        self.event = event
        self.context = context
        self.config = config

    @property
    def body(self) -> bytes:
        """The event itself."""
        return json.dumps(self.event).encode()

    @property
    def scope(self) -> Scope:
        """A POST to the batch route."""
        return {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "https",
            "path": SQS_PATH,
            "raw_path": SQS_PATH.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [[b"content-type", b"application/json"]],
            "server": ("lambda", 443),
            "client": ("sqs", 0),
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "aws.event": self.event,
            "aws.context": self.context,
        }

    def __call__(self, response: Response) -> dict[str, Any]:
        """The application's answer; all records as failed if it has none.

        Mangum turns an exception into a 500 and returns: without this the queue would delete the whole batch.
        """
        if response["status"] == 200:
            answer: dict[str, Any] = json.loads(response["body"])
            return answer
        return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in self.event["Records"]]}

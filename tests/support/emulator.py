"""An emulator of AWS, a process of its own, and what was deployed into it."""

import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from infra.local.server import Server, is_listening
from tests.support.lambda_runtime import running_function
from tests.support.supabase import free_port

STACK = "realtime-ai-backend-local"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}


class Aws:
    """An emulator of AWS, into which the stack was deployed."""

    def __init__(self, endpoint: str) -> None:
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}
        self._endpoint = endpoint

    def client(self, service: str) -> Any:
        """A boto3 client."""
        return boto3.client(
            service,
            endpoint_url=self._endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def queue_url(self, name: str) -> str:
        """A queue's URL, by its name's end."""
        url: str = self.client("sqs").get_queue_url(QueueName=f"{STACK}-{name}")["QueueUrl"]
        return url


class Moto(Server):
    """The emulator's process."""

    def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-m", "moto.server", "-p", str(self.port)]
        self._spawn(command, lambda: is_listening(self.port))


@contextmanager
def emulator(folder: Path) -> Iterator[Aws]:
    """Run it; its own log goes there."""
    moto = Moto(free_port(), folder / "moto.log")
    moto.start()
    try:
        yield Aws(f"http://127.0.0.1:{moto.port}")
    finally:
        moto.stop()


@contextmanager
def deployed(aws: Aws, name: str, folder: Path, **more: str) -> Iterator[Any]:
    """The deployed zip, fetched from the emulator and run by AWS's runtime client as the function is configured."""
    task = unpacked(aws, folder)
    configuration = aws.client("lambda").get_function_configuration(FunctionName=f"{STACK}-{name}")
    environment: Mapping[str, str] = configuration["Environment"]["Variables"] | more
    with running_function(task, configuration["Handler"], environment, folder / "logs") as function:
        yield function


def unpacked(aws: Aws, folder: Path) -> Path:
    """The deployed zip, fetched from the emulator; where it is unpacked."""
    s3 = aws.client("s3")
    (bucket,) = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    (key,) = [each["Key"] for each in s3.list_objects_v2(Bucket=bucket)["Contents"] if each["Key"].endswith(".zip")]
    s3.download_file(bucket, key, str(folder / "function.zip"))
    with zipfile.ZipFile(folder / "function.zip") as packed:
        packed.extractall(folder / "task")
    return folder / "task"

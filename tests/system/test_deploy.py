"""The deploy, without an account: packed and linted for AWS, deployed into an emulator, run by AWS's own client."""

import ast
import asyncio
import json
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import boto3
import pytest

from infra.event_source import EventSource
from infra.records import SessionEnded, utc_now
from infra.store.supabase import SupabaseStore
from tests.aimock import API_KEY, run_aimock
from tests.exchange import SUMMARY, an_exchange
from tests.lambda_runtime import RUNTIME_BOTO, install, running_function
from tests.sls import ROOT, for_this_machine, run_sls
from tests.supabase import Supabase, free_port, fresh, open_store

STACK = "realtime-ai-backend-local"
MOST_ZIP_BYTES = 20_000_000
"""Half of it bytecode, where the Python it is for is installed."""
DUMMY = {
    "supabaseUrl": "https://dummy.supabase.co",
    "container": "on",
    "containerTag": "1",
    "vpcId": "vpc-12345678",
    "publicSubnets": "subnet-11111111,subnet-22222222",
    "privateSubnets": "subnet-33333333,subnet-44444444",
    "certificateArn": "arn:aws:acm:us-east-1:123456789012:certificate/11111111-2222-3333-4444-555555555555",
    "supabaseKeyArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod-AbCdEf:SUPABASE_KEY::",
    "allowedOrigins": "https://example.com",
}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}


@dataclass(frozen=True)
class Package:
    """What `sls package` made."""

    template: dict[str, Any]
    template_file: Path
    zip_file: Path

    def of_type(self, kind: str) -> dict[str, Any]:
        """The resources of a type, by their logical ids."""
        return {name: each for name, each in self.template["Resources"].items() if each["Type"] == kind}


@pytest.fixture(scope="module")
def prod(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The package of everything for stage prod, made with dummy parameters and no credentials."""
    folder = tmp_path_factory.mktemp("package")
    parameters = [f"--param={name}={value}" for name, value in DUMMY.items()]
    run_sls("package", "--stage", "prod", "--package", str(folder), *parameters, environment={})
    template = folder / "cloudformation-template-update-stack.json"
    return Package(json.loads(template.read_text()), template, folder / "realtime-ai-backend.zip")


def test_the_template_passes_cfn_lint(prod: Package) -> None:
    """AWS's linter has nothing to say of it, not even a warning, beyond what the template itself excuses."""
    finished = subprocess.run(
        [Path(sys.executable).parent / "cfn-lint", prod.template_file], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stdout) == (0, "")
    excused = {
        name: each["Metadata"]["cfn-lint"]["config"]["ignore_checks"]
        for name, each in prod.template["Resources"].items()
        if "cfn-lint" in each.get("Metadata", {})
    }
    assert excused == {"HttpApiRoutePostSummary": ["W3005"]}


def test_the_zip_carries_what_the_functions_import_and_nothing_else(prod: Package) -> None:
    """Of our own code just the modules that are imported on AWS; no container, no tests, no boto3; and it is small."""
    with zipfile.ZipFile(prod.zip_file) as packed:
        names = [name for name in packed.namelist() if not name.endswith("/")]
    ours = {name for name in names if name.startswith(("functions/", "infra/")) and not name.endswith(".pyc")}
    code = """if True:
        import functions.summary.handler, functions.sweep.handler
        import infra.store.supabase, infra.llm.openai, infra.handoff.http
        import sys
        for name, module in sys.modules.items():
            if name.startswith(("functions", "infra")):
                print(module.__file__)
    """
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ours == {str(Path(line).relative_to(ROOT)) for line in imported.stdout.splitlines()}
    tops = {name.split("/")[0] for name in names}
    unwanted = {"tests", "frontend", "chat", "node_modules", "boto3", "botocore", "cryptography", "uvicorn", "moto"}
    assert not tops & unwanted
    assert not [name for name in names if name.endswith((".ts", ".env"))]
    assert [name for name in names if name.endswith("-aarch64-linux-gnu.so")]
    assert prod.zip_file.stat().st_size < MOST_ZIP_BYTES


def test_the_functions_are_woken_as_they_should_be(prod: Package) -> None:
    """The queue's failures are reported one by one, its batches bounded; the sweep is on its schedule; arm64."""
    (mapping,) = prod.of_type("AWS::Lambda::EventSourceMapping").values()
    assert mapping["Properties"] == {
        "BatchSize": 10,
        "MaximumBatchingWindowInSeconds": 1,
        "Enabled": True,
        "EventSourceArn": {"Fn::GetAtt": ["SessionEndedQueue", "Arn"]},
        "FunctionName": {"Fn::GetAtt": ["SummaryLambdaFunction", "Arn"]},
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "ScalingConfig": {"MaximumConcurrency": 10},
    }
    (rule,) = prod.of_type("AWS::Events::Rule").values()
    assert (rule["Properties"]["ScheduleExpression"], rule["Properties"]["State"]) == ("rate(1 minute)", "ENABLED")
    (route,) = prod.of_type("AWS::ApiGatewayV2::Route").values()
    assert route["Properties"]["RouteKey"] == "POST /summary"
    for function in prod.of_type("AWS::Lambda::Function").values():
        assert function["Properties"]["Architectures"] == ["arm64"]
        assert function["Properties"]["Runtime"] == "python3.13"
    for group in prod.of_type("AWS::Logs::LogGroup").values():
        assert group["Properties"]["RetentionInDays"] == 30


def test_a_batch_that_is_slow_does_not_come_twice(prod: Package) -> None:
    """The queue hides a message for six times as long as the function may take, as AWS advises."""
    slowest = max(each["Properties"]["Timeout"] for each in prod.of_type("AWS::Lambda::Function").values())
    assert prod.template["Resources"]["SessionEndedQueue"]["Properties"]["VisibilityTimeout"] >= 6 * slowest


def test_the_alarms_watch_the_two_queues(prod: Package) -> None:
    """One message among the dead, or one that waits too long, tells whoever subscribed to the topic."""
    watched = {
        each["Properties"]["Dimensions"][0]["Value"]["Fn::GetAtt"][0]: each["Properties"]
        for each in prod.of_type("AWS::CloudWatch::Alarm").values()
        if each["Properties"].get("Namespace") == "AWS/SQS"
    }
    assert watched.keys() == {"SessionEndedQueue", "SessionEndedDeadLetters"}
    assert watched["SessionEndedDeadLetters"]["Threshold"] == 0
    assert all(alarm["AlarmActions"] == [{"Ref": "Alarms"}] for alarm in watched.values())


def test_no_secret_is_in_the_template(prod: Package) -> None:
    """CloudFormation is told where each one lies; the machine that deploys never has it."""
    for function in prod.of_type("AWS::Lambda::Function").values():
        environment = function["Properties"]["Environment"]["Variables"]
        for name in {"SUPABASE_KEY", "OPENAI_API_KEY", "HANDOFF_SECRET"} & environment.keys():
            assert environment[name] == f"{{{{resolve:secretsmanager:realtime-ai-backend/prod:SecretString:{name}}}}}"


# In the emulator


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

    def outputs(self) -> dict[str, str]:
        """What the stack says of itself."""
        (stack,) = self.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}

    def queue_url(self, name: str) -> str:
        """A queue's URL, by its name's end."""
        url: str = self.client("sqs").get_queue_url(QueueName=f"{STACK}-{name}")["QueueUrl"]
        return url


@contextmanager
def moto_server(port: int, log: IO[bytes]) -> Iterator[str]:
    """The emulator, a process of its own; where it answers."""
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            assert time.monotonic() < deadline, "the emulator did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture(scope="module")
def aws(supabase: Supabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """An emulator with the stack in it, on the Supabase under test."""
    folder = tmp_path_factory.mktemp("aws")
    port = free_port()
    with (folder / "moto.log").open("wb") as log, moto_server(port, log) as endpoint:
        aws = Aws(endpoint)
        named = {"SUPABASE_URL": supabase.url, "SUPABASE_KEY": supabase.service_key}
        run_sls("deploy", *for_this_machine(), environment=aws.environment | named)
        yield aws


def test_the_stack_is_there(aws: Aws) -> None:
    """Queue, dead letters, mapping and schedule are as the template says."""
    sqs = aws.client("sqs")
    attributes = sqs.get_queue_attributes(QueueUrl=aws.queue_url("session-ended"), AttributeNames=["All"])["Attributes"]
    redrive = json.loads(attributes["RedrivePolicy"])
    assert redrive["deadLetterTargetArn"].endswith(":realtime-ai-backend-local-session-ended-dead")
    assert (int(redrive["maxReceiveCount"]), attributes["VisibilityTimeout"]) == (5, "180")
    (mapping,) = aws.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    assert mapping["EventSourceArn"] == attributes["QueueArn"]
    assert (mapping["BatchSize"], mapping["FunctionResponseTypes"]) == (10, ["ReportBatchItemFailures"])
    (rule,) = aws.client("events").list_rules()["Rules"]
    assert rule["ScheduleExpression"] == "rate(1 minute)"
    (target,) = aws.client("events").list_targets_by_rule(Rule=rule["Name"])["Targets"]
    assert target["Arn"].endswith(":function:realtime-ai-backend-local-sweep")


def test_the_role_may_do_what_the_functions_do(aws: Aws) -> None:
    """Write their own logs, receive from the queue and send to it: no other action, and no `*` for a resource."""
    iam = aws.client("iam")
    (role,) = [role["RoleName"] for role in iam.list_roles()["Roles"] if role["RoleName"].startswith(STACK)]
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    statements = [
        statement
        for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]
        for statement in _policy(iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"])
    ]
    queue_arn = f"arn:aws:sqs:us-east-1:123456789012:{STACK}-session-ended"
    logs = f"arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/{STACK}*"  # of these functions, by their names
    allowed = {
        (action, resource)
        for statement in statements
        for action in _listed(statement["Action"])
        for resource in _listed(statement["Resource"])
    }
    assert all(statement["Effect"] == "Allow" for statement in statements)
    assert allowed == {
        ("logs:CreateLogStream", f"{logs}:*"),
        ("logs:CreateLogGroup", f"{logs}:*"),
        ("logs:TagResource", f"{logs}:*"),
        ("logs:PutLogEvents", f"{logs}:*:*"),
        ("sqs:SendMessage", queue_arn),
        ("sqs:ReceiveMessage", queue_arn),
        ("sqs:DeleteMessage", queue_arn),
        ("sqs:GetQueueAttributes", queue_arn),
    }


def _policy(document: Any) -> list[dict[str, Any]]:
    """A policy's statements; the emulator writes what came as a mapping in Python's own way."""
    parsed = ast.literal_eval(document) if isinstance(document, str) else document
    statements: list[dict[str, Any]] = parsed["Statement"]
    return statements


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


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


def test_a_cold_start_compiles_nothing(aws: Aws, tmp_path: Path) -> None:
    """Every module of the deployed zip that a function imports comes with its bytecode, and is believed as it is."""
    task = unpacked(aws, tmp_path)
    code = """if True:
        import sys
        from importlib.machinery import SourceFileLoader

        compile = SourceFileLoader.source_to_code
        def source_to_code(self, data, path, **more):
            print(path)
            return compile(self, data, path, **more)
        SourceFileLoader.source_to_code = source_to_code

        import functions.summary.handler, functions.sweep.handler
        import infra.store.supabase, infra.llm.openai, infra.handoff.http
        print("imported", functions.summary.handler.__file__)
    """
    install(tmp_path / "runtime", RUNTIME_BOTO)
    environment = {"PYTHONPATH": f"{task}:{tmp_path / 'runtime'}", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys._base_executable, "-S", "-c", code]  # type: ignore[attr-defined]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    compiled = [line for line in finished.stdout.splitlines() if line.startswith(str(task))]
    assert f"imported {task}/functions/summary/handler.py" in finished.stdout
    assert compiled == []


async def a_session(store: SupabaseStore, container_id: str = "box") -> str:
    """One exchange, stored."""
    session_id = fresh("deployed")
    at = utc_now() - timedelta(hours=1)
    await store.open_session(session_id, "ann", at=at, container_id=container_id)
    await store.append(an_exchange(session_id, at))
    return session_id


async def test_the_deployed_zip_handles_the_queues_messages(aws: Aws, supabase: Supabase, tmp_path: Path) -> None:
    """The summary is written; the poison message, which nobody can read, ends among the dead letters, alone."""
    store = await open_store(supabase.url, supabase.service_key)
    session_id = await a_session(store)
    sqs, url = aws.client("sqs"), aws.queue_url("session-ended")
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "0"})  # not three minutes a try
    ended = SessionEnded(session_id=session_id, epoch=1, ended_at=utc_now(), reason="closed")
    for body in ("poison", ended.to_json()):
        sqs.send_message(QueueUrl=url, MessageBody=body)
    with deployed(aws, "summary", tmp_path) as function:
        source = EventSource(sqs, url, function)
        received = [await asyncio.to_thread(source.poll, 0) for _ in range(6)]
    assert received == [2, 1, 1, 1, 1, 0]
    row = await store.session(session_id)
    await store.close()
    assert row
    assert (row.end_time, row.duration) == (ended.ended_at, 3600)
    assert row.final_summary == SUMMARY
    dead = sqs.receive_message(QueueUrl=aws.queue_url("session-ended-dead"), MaxNumberOfMessages=10)["Messages"]
    assert [message["Body"] for message in dead] == ["poison"]
    lines = [json.loads(line) for line in (tmp_path / "logs").read_text().splitlines()]
    (written,) = [line for line in lines if line.get("event") == "written"]
    assert (written["session_id"], written["epoch"], bool(written["request_id"])) == (session_id, 1, True)
    counted = [(line["service"], line.get("Written"), line.get("Failed")) for line in lines if "_aws" in line]
    assert counted == [("summary", [1.0], [1.0]), *[("summary", None, [1.0])] * 4]
    assert "apples" not in (tmp_path / "logs").read_text()


async def test_the_deployed_zip_has_a_model_write_the_summary(aws: Aws, supabase: Supabase, tmp_path: Path) -> None:
    """What the provider's library needs is in the zip as well, its metadata among it."""
    store = await open_store(supabase.url, supabase.service_key)
    session_id = await a_session(store)
    sqs, url = aws.client("sqs"), aws.queue_url("session-ended")
    ended = SessionEnded(session_id=session_id, epoch=1, ended_at=utc_now(), reason="closed")
    sqs.send_message(QueueUrl=url, MessageBody=ended.to_json())
    with run_aimock() as service:
        service.answer({}, {"content": "They spoke of fruit."})
        model = {"OPENAI_API_KEY": API_KEY, "OPENAI_BASE_URL": service.base_url, "LLM_MODEL": "gpt-4o-mini"}
        with deployed(aws, "summary", tmp_path, LLM_PROVIDER="openai", NO_PROXY="127.0.0.1", **model) as function:
            assert await asyncio.to_thread(EventSource(sqs, url, function).poll, 0) == 1
    row = await store.session(session_id)
    await store.close()
    assert row
    assert row.final_summary == "They spoke of fruit."


async def test_the_deployed_sweep_hands_off_what_a_dead_container_left(
    aws: Aws, supabase: Supabase, tmp_path: Path
) -> None:
    """Its message is on the deployed queue, for the summary function to find."""
    store = await open_store(supabase.url, supabase.service_key)
    session_id = await a_session(store, fresh("dead"))
    await store.close()
    sqs, url = aws.client("sqs"), aws.queue_url("session-ended")
    with deployed(aws, "sweep", tmp_path, DISCONNECT_QUEUE_URL=url, **aws.environment) as function:
        assert (await asyncio.to_thread(function, {}))["handed_off"] >= 1
    swept: list[SessionEnded] = []
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", []):
        swept += [SessionEnded.from_json(message["Body"]) for message in messages]
        for message in messages:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    assert [(each.epoch, each.reason) for each in swept if each.session_id == session_id] == [(1, "crashed")]


def test_remove_leaves_nothing(aws: Aws) -> None:
    """`sls remove` takes the stack away, with its queues and functions."""
    run_sls("remove", *for_this_machine(), environment=aws.environment)
    assert aws.client("sqs").list_queues().get("QueueUrls", []) == []
    assert aws.client("lambda").list_functions()["Functions"] == []
    assert aws.client("events").list_rules()["Rules"] == []

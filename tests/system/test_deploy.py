"""The deploy, without an account: into an emulator, and the deployed zip run by AWS's own client."""

import ast
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.local.event_source import EventSource
from infra.records import SessionEnded, utc_now
from infra.store.supabase import SupabaseStore
from tests.support.aimock import API_KEY, run_aimock
from tests.support.emulator import STACK, Aws, deployed, emulator, unpacked
from tests.support.exchange import SUMMARY, an_exchange
from tests.support.lambda_runtime import RUNTIME_BOTO, install
from tests.support.sls import for_this_machine, run_sls
from tests.support.supabase import Supabase, fresh, open_store


@pytest.fixture(scope="module")
def aws(supabase: Supabase, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """An emulator with the stack in it, on the Supabase under test."""
    with emulator(tmp_path_factory.mktemp("aws")) as aws:
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


def test_each_role_may_do_what_its_function_does(aws: Aws) -> None:
    """Write that function's log and take its own side of the queue: no other action, and nothing of anybody else's."""
    queue = f"arn:aws:sqs:us-east-1:123456789012:{STACK}-session-ended"
    own = {
        "summary": {(f"sqs:{action}", queue) for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes")},
        "sweep": {("sqs:SendMessage", queue)},
    }
    assert len(aws.client("iam").list_roles()["Roles"]) == len(own)
    for function, queue_side in own.items():
        configuration = aws.client("lambda").get_function_configuration(FunctionName=f"{STACK}-{function}")
        log = f"arn:aws:logs:us-east-1:123456789012:log-group:/aws/lambda/{STACK}-{function}"
        written = {(f"logs:{action}", log) for action in ("CreateLogStream", "PutLogEvents")}
        assert allowed(aws, configuration["Role"].rpartition("/")[2]) == queue_side | written


def allowed(aws: Aws, role: str) -> set[tuple[str, str]]:
    """Each action that the role allows, with its resource."""
    iam = aws.client("iam")
    assert iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] == []
    statements = [
        statement
        for policy in iam.list_role_policies(RoleName=role)["PolicyNames"]
        for statement in _policy(iam.get_role_policy(RoleName=role, PolicyName=policy)["PolicyDocument"])
    ]
    assert all(statement["Effect"] == "Allow" for statement in statements)
    return {
        (action, resource.removesuffix(":*"))  # a log group's ARN, which AWS itself ends so
        for statement in statements
        for action in _listed(statement["Action"])
        for resource in _listed(statement["Resource"])
    }


def _policy(document: Any) -> list[dict[str, Any]]:
    """A policy's statements; the emulator writes what came as a mapping in Python's own way."""
    parsed = ast.literal_eval(document) if isinstance(document, str) else document
    statements: list[dict[str, Any]] = parsed["Statement"]
    return statements


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


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
    """`sls remove` takes the stack away, and all that was in it. The last test here: the others need it."""
    run_sls("remove", *for_this_machine(), environment=aws.environment)
    assert aws.client("cloudformation").describe_stacks()["Stacks"] == []
    assert aws.client("sqs").list_queues().get("QueueUrls", []) == []
    assert aws.client("lambda").list_functions()["Functions"] == []
    assert aws.client("events").list_rules()["Rules"] == []
    assert aws.client("iam").list_roles()["Roles"] == []
    assert aws.client("sns").list_topics()["Topics"] == []
    assert aws.client("cloudwatch").describe_alarms()["MetricAlarms"] == []
    assert aws.client("logs").describe_log_groups()["logGroups"] == []
    assert aws.client("s3").list_buckets()["Buckets"] == []

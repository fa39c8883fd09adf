"""The package, as it goes to AWS: its template linted and read, its zip opened."""

import json
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.sls import ROOT, refused, run_sls

MOST_ZIP_BYTES = 10_000_000
"""Without bytecode, which the zip has where the Python it is for is installed."""
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
    "logRetentionDays": "14",
    "llmProvider": "openai",
    "supabasePublishableKey": "sb_publishable_x",
    "llmModel": "gpt-4o-mini",
    "openaiKeyArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:prod-AbCdEf:OPENAI_API_KEY::",
}
SECRETS = ["SUPABASE_KEY", "OPENAI_API_KEY", "HANDOFF_SECRET"]
SECRET = "sk-of-this-machine"
HERE = dict.fromkeys(SECRETS, SECRET) | {"OPENAI_BASE_URL": "http://localhost:11434/v1", "LLM_MODEL": "llama"}
"""What the machine that deploys has in its environment."""


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
    run_sls("package", "--stage", "prod", "--package", str(folder), *parameters, environment=HERE)
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
        import infra.tracing.otel, infra.llm.traced, infra.handoff.traced
        import sys
        for name, module in sys.modules.items():
            if name.startswith(("functions", "infra")):
                print(module.__file__)
    """
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ours == {str(Path(line).relative_to(ROOT)) for line in imported.stdout.splitlines()}
    tops = {name.split("/")[0] for name in names}
    unwanted = {"tests", "frontend", "chat", "node_modules", "boto3", "botocore", "cryptography", "uvicorn", "moto"}
    unwanted |= {"bin", "requirements.txt"}
    assert not tops & unwanted
    assert not [name for name in names if name.endswith((".ts", ".env"))]
    assert [name for name in names if name.endswith("-aarch64-linux-gnu.so")]
    with zipfile.ZipFile(prod.zip_file) as packed:
        sources = sum(each.compress_size for each in packed.infolist() if not each.filename.endswith(".pyc"))
    assert sources < MOST_ZIP_BYTES
    assert prod.zip_file.stat().st_size < 2 * MOST_ZIP_BYTES


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
        assert int(group["Properties"]["RetentionInDays"]) == 14


def test_a_batch_that_is_slow_does_not_come_twice(prod: Package) -> None:
    """The queue hides a message for six times as long as the function may take, as AWS advises."""
    slowest = max(each["Properties"]["Timeout"] for each in prod.of_type("AWS::Lambda::Function").values())
    assert prod.template["Resources"]["SessionEndedQueue"]["Properties"]["VisibilityTimeout"] >= 6 * slowest


def test_the_alarms_watch_the_two_queues(prod: Package) -> None:
    """One message among the dead, one that waits too long, or a function that fails tells whoever subscribed."""
    watched = {
        each["Properties"]["Dimensions"][0]["Value"]["Fn::GetAtt"][0]: each["Properties"]
        for each in prod.of_type("AWS::CloudWatch::Alarm").values()
        if each["Properties"].get("Namespace") == "AWS/SQS"
    }
    assert watched.keys() == {"SessionEndedQueue", "SessionEndedDeadLetters"}
    assert watched["SessionEndedDeadLetters"]["Threshold"] == 0
    assert all(alarm["AlarmActions"] == [{"Ref": "Alarms"}] for alarm in watched.values())
    failing = {
        each["Properties"]["Dimensions"][0]["Value"]["Ref"]: each["Properties"]["AlarmActions"]
        for each in prod.of_type("AWS::CloudWatch::Alarm").values()
        if each["Properties"].get("MetricName") == "Errors"
    }
    assert failing == {name: [{"Ref": "Alarms"}] for name in ("SummaryLambdaFunction", "SweepLambdaFunction")}


def test_no_secret_is_in_the_template(prod: Package) -> None:
    """CloudFormation is told where each secret is kept; the deploying machine's own never leave it."""
    assert SECRET not in json.dumps(prod.template)
    environments = {
        each["Properties"]["FunctionName"].rpartition("-")[2]: each["Properties"]["Environment"]["Variables"]
        for each in prod.of_type("AWS::Lambda::Function").values()
    }
    for function, names in {"summary": SECRETS, "sweep": ["SUPABASE_KEY"]}.items():
        for name in names:
            place = f"{{{{resolve:secretsmanager:realtime-ai-backend/prod:SecretString:{name}}}}}"
            assert environments[function][name] == place


def test_of_this_machine_nothing_is_deployed_to_prod(prod: Package) -> None:
    """A developer's model on localhost is nobody else's."""
    summary = prod.template["Resources"]["SummaryLambdaFunction"]["Properties"]["Environment"]["Variables"]
    assert (summary["LLM_MODEL"], summary["OPENAI_BASE_URL"]) == ("gpt-4o-mini", "")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"container": "off"}, "supabaseUrl is needed"),
        ({"supabaseUrl": "https://dummy.supabase.co"}, "container is needed"),
        ({"llmProvider": "skynet"}, "llmProvider=skynet"),
        ({"llmProvider": "openai"}, "llmModel is needed"),
    ],
)
def test_a_deploy_to_prod_says_what_it_needs(given: dict[str, str], named: str) -> None:
    """A deploy with a forgotten parameter is refused before packing: it would remove what is there."""
    parameters = [f"--param={name}={value}" for name, value in given.items()]
    assert named in refused("package", "--stage", "prod", *parameters)


def test_one_function_alone_is_not_deployed() -> None:
    """`deploy function` is refused: it would write references to secrets in place of the secrets."""
    assert "use deploy" in refused("deploy", "function", "-f", "summary", "--stage", "prod")


def test_rolling_back_needs_no_parameters(tmp_path: Path) -> None:
    """`sls rollback` asks for no parameter of the container; here it gets as far as calling AWS."""
    nobody = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a"}
    assert "ECONNREFUSED" in refused("rollback", "--stage", "prod", "--timestamp", "1", **nobody)

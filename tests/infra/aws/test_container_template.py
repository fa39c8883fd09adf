"""The container's template: what it promises is checked on the YAML itself, where an emulator ignores it."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, get_args

import httpx
import pytest
from pydantic import SecretStr

from chat.main import ENDINGS_SECONDS, JOURNAL_SECONDS, SESSIONS_SECONDS
from chat.sessions.registry import ANNOUNCED_SECONDS, LAST_SAVED_SECONDS
from infra.settings import Settings
from tests.conftest import Serve
from tests.support.template import template

CLOSING_SECONDS = 1 + SESSIONS_SECONDS + JOURNAL_SECONDS + ENDINGS_SECONDS
"""uvicorn's own second, and the last steps."""


RESOURCES: dict[str, dict[str, Any]] = template("container", "balancer")["Resources"]
(CONTAINER,) = RESOURCES["ContainerTask"]["Properties"]["ContainerDefinitions"]
ENVIRONMENT = {each["Name"]: each["Value"] for each in CONTAINER["Environment"]}


def properties(name: str) -> Any:
    return RESOURCES[name]["Properties"]


def attribute(name: str, key: str) -> str:
    """An attribute of the balancer or of its targets, which are lists of keys and values."""
    kind = "LoadBalancerAttributes" if name == "ContainerBalancer" else "TargetGroupAttributes"
    (value,) = (each["Value"] for each in properties(name)[kind] if each["Key"] == key)
    return str(value)


def statements(role: str) -> list[dict[str, Any]]:
    """What the role allows, with those that depend on a condition as if it held."""
    (policy,) = properties(role)["Policies"]
    return [each["Fn::If"][1] if "Fn::If" in each else each for each in policy["PolicyDocument"]["Statement"]]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_the_kill_comes_after_the_drain() -> None:
    """ECS waits as long as replies may finish, clients are told, and the last events are stored."""
    drain = float(ENVIRONMENT["DRAIN_SECONDS"])
    assert drain == Settings().drain_seconds
    assert drain + 2 * LAST_SAVED_SECONDS + ANNOUNCED_SECONDS + CLOSING_SECONDS < CONTAINER["StopTimeout"] <= 120


def test_the_balancer_leaves_sockets_alone_while_they_drain() -> None:
    """A container that was told to go keeps its sockets until it closes them itself."""
    delay = int(attribute("ContainerTargets", "deregistration_delay.timeout_seconds"))
    assert delay > float(ENVIRONMENT["DRAIN_SECONDS"]) + 2 * LAST_SAVED_SECONDS


def test_the_balancer_cuts_no_socket_that_is_pinged() -> None:
    """A quiet socket is pinged more than once before it would be cut."""
    assert "PING_SECONDS" not in ENVIRONMENT
    idle = int(attribute("ContainerBalancer", "idle_timeout.timeout_seconds"))
    assert idle > 2 * Settings().ping_seconds


def test_containers_are_added_before_they_are_full() -> None:
    """The sockets that scaling aims at leave room for those of a container that dies."""
    assert "MAX_SESSIONS" not in ENVIRONMENT
    policy = properties("ContainerScalingBySockets")["TargetTrackingScalingPolicyConfiguration"]
    assert policy["TargetValue"] <= Settings().max_sessions / 2
    returned = [each for each in policy["CustomizedMetricSpecification"]["Metrics"] if each.get("ReturnData", True)]
    assert [each["Expression"] for each in returned] == ["FILL(connections, 0) / 2 / containers"]


def test_the_program_may_send_to_its_queue_and_nothing_else() -> None:
    """The task's role is one statement, and no policy is attached besides."""
    queue = {"Fn::GetAtt": ["SessionEndedQueue", "Arn"]}
    assert statements("ContainerTaskRole") == [{"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": queue}]
    assert properties("ContainerTask")["TaskRoleArn"] == {"Fn::GetAtt": ["ContainerTaskRole", "Arn"]}
    assert ENVIRONMENT["DISCONNECT_QUEUE_URL"] == {"Ref": "SessionEndedQueue"}


def test_no_role_allows_everything_of_anything() -> None:
    """Each statement names its actions and resources; only the login to the registry cannot."""
    roles = [name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::IAM::Role"]
    assert roles == ["ContainerExecutionRole", "ContainerTaskRole"]
    anywhere = []
    for role in roles:
        assert not {"ManagedPolicyArns"} & properties(role).keys()
        for statement in statements(role):
            assert statement.keys() == {"Effect", "Action", "Resource"}
            assert "*" not in json.dumps(statement["Action"])
            if "*" in json.dumps(statement["Resource"]):
                anywhere += as_list(statement["Action"])
    assert anywhere == ["ecr:GetAuthorizationToken"]


def test_what_starts_the_task_reads_the_secrets_that_are_given_and_no_others() -> None:
    """The role's resources are those of the secrets, without what picks a value out of them."""
    (statement,) = (each for each in statements("ContainerExecutionRole") if "ssm:GetParameters" in each["Action"])
    assert statement["Action"] == ["ssm:GetParameters", "secretsmanager:GetSecretValue"]

    def whole(name: str, parameter: str) -> dict[str, Any]:
        return {"Fn::Select": [0, {"Fn::Split": [f":{name}::", {"Ref": parameter}]}]}

    openai = {"Fn::If": ["ContainerOpenai", whole("OPENAI_API_KEY", "OpenaiKeyArn"), {"Ref": "AWS::NoValue"}]}
    guests = {"Fn::If": ["ContainerGuests", whole("SESSION_SECRET", "SessionSecretArn"), {"Ref": "AWS::NoValue"}]}
    assert statement["Resource"] == [whole("SUPABASE_KEY", "SupabaseKeyArn"), openai, guests]


def test_secrets_come_by_reference() -> None:
    """No secret setting is in the plain environment; those the container gets are named by where they are."""
    secret = {name.upper() for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation)}
    assert {"SUPABASE_KEY", "OPENAI_API_KEY"} <= secret
    assert not secret & ENVIRONMENT.keys()
    given = [each["Fn::If"][1] if "Fn::If" in each else each for each in CONTAINER["Secrets"]]
    assert given == [
        {"Name": "SUPABASE_KEY", "ValueFrom": {"Ref": "SupabaseKeyArn"}},
        {"Name": "OPENAI_API_KEY", "ValueFrom": {"Ref": "OpenaiKeyArn"}},
        {"Name": "SESSION_SECRET", "ValueFrom": {"Ref": "SessionSecretArn"}},
    ]
    values = json.dumps([each for name, each in ENVIRONMENT.items()])
    assert "KeyArn" not in values
    assert "{{resolve" not in json.dumps(RESOURCES)


def test_every_plain_variable_is_a_setting() -> None:
    """A misspelt name would be passed over in silence."""
    known = {name.upper() for name in Settings.model_fields}
    assert ENVIRONMENT.keys() - known == {"TMPDIR"}


def test_only_the_balancer_reaches_the_containers() -> None:
    """They take its connections on one port, Prometheus's, if it is named, on another; they call out by HTTPS alone."""
    access = properties("ContainerTaskAccess")
    balancer, prometheus = access["SecurityGroupIngress"]
    condition, prometheus, nothing = prometheus["Fn::If"]
    assert (condition, nothing) == ("ContainerMetrics", {"Ref": "AWS::NoValue"})
    assert prometheus["SourceSecurityGroupId"] == {"Ref": "MetricsSecurityGroup"}
    assert balancer["SourceSecurityGroupId"] == {"Fn::GetAtt": ["ContainerBalancerAccess", "GroupId"]}
    for way_in, port in ((balancer, "PORT"), (prometheus, "METRICS_PORT")):
        assert not {"CidrIp", "CidrIpv6", "SourcePrefixListId"} & way_in.keys()
        assert str(way_in["FromPort"]) == str(way_in["ToPort"]) == ENVIRONMENT[port]
    assert [(way["FromPort"], way["ToPort"]) for way in access["SecurityGroupEgress"]] == [(443, 443)]
    network = properties("ContainerService")["NetworkConfiguration"]["AwsvpcConfiguration"]
    assert network["SecurityGroups"] == [{"Fn::GetAtt": ["ContainerTaskAccess", "GroupId"]}]
    assert network["AssignPublicIp"] == "DISABLED"
    assert not [name for name, each in RESOURCES.items() if each["Type"].startswith("AWS::EC2::SecurityGroupIn")]


async def test_the_balancer_keeps_the_metrics_to_those_inside(serve: Serve) -> None:
    """The path where the app has them is answered by the balancer itself, with 404."""
    rule = properties("ContainerHidden")
    assert rule["ListenerArn"] == {"Ref": "ContainerHttps"}
    ((path,),) = (condition["PathPatternConfig"]["Values"] for condition in rule["Conditions"])
    assert [action["FixedResponseConfig"]["StatusCode"] for action in rule["Actions"]] == ["404"]
    async with serve() as server, httpx.AsyncClient(base_url=server.http) as client:
        assert (await client.get(path)).text.startswith("# HELP")


def test_somebody_is_woken_when_no_container_is_there() -> None:
    """A container that never came up was never unhealthy, so missing data is an alarm as well."""
    alarm = properties("ContainersGone")
    assert (alarm["MetricName"], alarm["Statistic"]) == ("HealthyHostCount", "Minimum")
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("LessThanThreshold", 1)
    assert (alarm["TreatMissingData"], alarm["AlarmActions"]) == ("breaching", [{"Ref": "Alarms"}])


def test_the_balancer_speaks_https_alone() -> None:
    """Two ports are open; the plain one only sends on to the other."""
    open_ports = [
        (way["FromPort"], way["ToPort"]) for way in properties("ContainerBalancerAccess")["SecurityGroupIngress"]
    ]
    assert open_ports == [(443, 443), (80, 80)]
    assert properties("ContainerHttps")["Protocol"] == "HTTPS"
    (action,) = properties("ContainerHttp")["DefaultActions"]
    assert action["Type"] == "redirect"
    assert action["RedirectConfig"]["Protocol"] == "HTTPS"


def test_nothing_is_there_unless_asked_for() -> None:
    """Each resource and output is bound to its condition: the repository to its own, all else to `on`."""
    whole = template("container", "balancer")
    for name, resource in (whole["Resources"] | whole["Outputs"]).items():
        assert resource.get("Condition") == ("ContainerRegistry" if "Repository" in name else "ContainerOn"), name
    assert whole["Conditions"]["ContainerOn"] == {"Fn::Equals": [{"Ref": "Container"}, "on"]}
    assert whole["Parameters"]["Container"]["Default"] == "off"


def test_a_deploy_replaces_containers_one_after_the_other() -> None:
    """The old ones stay until the new ones are healthy, and come back if those never are."""
    service = properties("ContainerService")
    assert service["DeploymentConfiguration"] == {
        "MinimumHealthyPercent": 100,
        "MaximumPercent": 200,
        "DeploymentCircuitBreaker": {"Enable": True, "Rollback": True},
    }
    assert "DesiredCount" not in service
    assert RESOURCES["ContainerService"]["DependsOn"] == "ContainerHttps"


def test_the_container_writes_to_its_data_and_nowhere_else() -> None:
    """The root is read-only, one volume is mounted, and SIGTERM reaches the server, as no other process comes first."""
    assert CONTAINER["ReadonlyRootFilesystem"] is True
    assert CONTAINER["MountPoints"] == [{"SourceVolume": "data", "ContainerPath": ENVIRONMENT["DATA_DIR"]}]
    assert ENVIRONMENT["TMPDIR"] == ENVIRONMENT["DATA_DIR"]
    assert properties("ContainerTask")["Volumes"] == [{"Name": "data"}]
    assert "InitProcessEnabled" not in CONTAINER["LinuxParameters"]
    assert not {"EntryPoint", "Command", "Privileged", "User"} & CONTAINER.keys()


async def test_the_app_answers_the_health_checks(serve: Serve) -> None:
    """Both checks ask for a path that the app has."""
    path = properties("ContainerTargets")["HealthCheckPath"]
    assert path == "/live", "a store that is down is no reason to replace a container"
    assert path in CONTAINER["HealthCheck"]["Command"][-1]
    async with serve() as server, httpx.AsyncClient(base_url=server.http) as client:
        assert (await client.get(path)).status_code == 200


class Unhealthy(BaseHTTPRequestHandler):
    """What the app answers while it drains, or has no store."""

    def do_GET(self) -> None:
        """Answer at once."""
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def unhealthy() -> Iterator[int]:
    """The port of a server that is alive but unhealthy."""
    with HTTPServer(("127.0.0.1", 0), Unhealthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_container_that_answers_is_left_alive(unhealthy: int) -> None:
    """ECS's own check fails only where nothing answers: a container that drains, or waits for its store, lives on."""
    kind, program, *arguments = CONTAINER["HealthCheck"]["Command"]
    assert (kind, program) == ("CMD", "python")
    assert arguments[-1].count(ENVIRONMENT["PORT"]) == 1
    for port, alive in ((unhealthy, True), (1, False)):
        code = arguments[-1].replace(ENVIRONMENT["PORT"], str(port))
        checked = subprocess.run([sys.executable, *arguments[:-1], code], capture_output=True, timeout=20, check=False)
        assert (checked.returncode == 0) is alive, checked.stderr

"""The container's parameters: what is missing is named, what is wrong is refused, and all they lead to is valid."""

import json
import os
import re
import shutil
import subprocess

import pytest

from tests.support.template import AWS, GIVEN, PLACEHOLDER, template

REGIONS = ["us-east-1"]
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:realtime/prod-AbCdEf"


@pytest.mark.parametrize(
    "given", [{}, {"container": "registry"}, GIVEN, GIVEN | {"containerImage": "ghcr.io/me/chat:1"}]
)
def test_cfn_lint_finds_nothing(given: dict[str, str]) -> None:
    """The template is valid in all its forms, together with the files it refers to."""
    from cfnlint.api import lint  # type: ignore[import-untyped]
    from cfnlint.core import get_rules  # type: ignore[import-untyped]

    whole = template("queues", "alarms", "container", "balancer", **given)
    assert [str(match) for match in lint(json.dumps(whole), get_rules([], [], []), REGIONS)] == []


def asked(**given: str) -> tuple[bool, str]:
    """Whether `container.cjs` is content with these parameters, and what it says."""
    if not shutil.which("node"):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("Node.js is not installed")
    program = """
        const [file, given] = process.argv.slice(1);
        const resolveVariable = async (variable) => {
          const [, name, otherwise] = variable.match(/^param:(\\w+), '(.*)'$/);
          return JSON.parse(given)[name] ?? otherwise;
        };
        require(file)({ resolveVariable }).then(
          (found) => console.log(JSON.stringify(found)),
          (said) => { console.log(said); process.exit(1); },
        );
    """
    command = ["node", "-e", program, str(AWS / "container.cjs"), json.dumps(given)]
    answered = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert not answered.stderr, answered.stderr
    return answered.returncode == 0, answered.stdout.strip()


def test_what_is_missing_is_named_before_anything_is_deployed() -> None:
    """All missing parameters are named at once; those who host the container elsewhere are asked for none."""
    assert asked() == (True, '{"container":"off"}')
    assert asked(container="registry") == (True, '{"container":"registry"}')
    assert asked(**GIVEN) == (True, '{"container":"on"}')
    content, said = asked(container="on")
    assert not content
    for name in GIVEN.keys() - {"container"}:
        assert f"{name} (" in said
    content, said = asked(**GIVEN | {"llmProvider": "openai"})
    assert not content
    assert re.findall(r"(\w+) \(", said) == ["llmModel", "openaiKeyArn"]
    assert asked(**GIVEN | {"container": "yes"}) == (False, "container=yes: must be off, registry or on")


def test_what_must_be_given_is_a_parameter() -> None:
    """`container.cjs` and the templates know the same names."""
    source = (AWS / "container.cjs").read_text()
    known = {
        found[1]
        for name in ("container", "balancer")
        for found in PLACEHOLDER.finditer((AWS / f"{name}.yml").read_text())
    }
    wanted = set(re.findall(r"^  (\w+):", source, re.M)) | set(re.findall(r"given\('(\w+)'", source)) - {"container"}
    assert wanted <= known


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("SupabaseKeyArn", "SUPABASE_KEY"),
        ("OpenaiKeyArn", "OPENAI_API_KEY"),
        ("SessionSecretArn", "SESSION_SECRET"),
    ],
)
def test_a_secret_itself_is_refused(name: str, key: str) -> None:
    """CloudFormation takes an ARN, with the secret's own key where it is JSON, and no value, list or wildcard."""
    takes = re.compile(template("container")["Parameters"][name]["AllowedPattern"]).fullmatch
    assert takes(GIVEN["supabaseKeyArn"])
    assert takes(SECRET)
    assert takes(f"{SECRET}:{key}::")
    for wrong in ["sb_secret_abc", f"{SECRET}:OTHER::", f"{SECRET}:{key}", SECRET.replace("AbCdEf", "*")]:
        assert not takes(wrong), wrong

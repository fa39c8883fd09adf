"""The files of `infra/aws/` as one template, without the framework: short forms made long, parameters filled in."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

AWS = Path(__file__).resolve().parents[2] / "infra" / "aws"
PLACEHOLDER = re.compile(r"\$\{(?:param:(\w+), '([^']*)'|file\(infra/aws/container\.cjs\):(\w+))\}")
"""What the framework fills in: a parameter or its default, and the one that `container.cjs` has looked at."""
GIVEN = {
    "container": "on",
    "containerTag": "v1",
    "vpcId": "vpc-0123456789abcdef0",
    "publicSubnets": "subnet-0123456789abcdef0,subnet-0123456789abcdef1",
    "privateSubnets": "subnet-0123456789abcdef2,subnet-0123456789abcdef3",
    "certificateArn": "arn:aws:acm:us-east-1:123456789012:certificate/12345678-1234-1234-1234-123456789012",
    "supabaseUrl": "https://abcdefgh.supabase.co",
    "supabaseKeyArn": "arn:aws:ssm:us-east-1:123456789012:parameter/prod/supabase-key",
    "allowedOrigins": "https://example.com",
    "sessionSecretArn": "arn:aws:ssm:us-east-1:123456789012:parameter/prod/session-secret",
}
"""All that the container needs."""


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms as the long ones: `!Ref X` as `{"Ref": "X"}`."""


def _long_form(loader: Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.SequenceNode):
        value: Any = loader.construct_sequence(node, deep=True)
    elif isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node, deep=True)
    else:
        value = loader.construct_scalar(node)  # type: ignore[arg-type]
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


Loader.add_multi_constructor("!", _long_form)


def template(*names: str, **given: str) -> dict[str, Any]:
    """These files as one template, as the framework merges them, with these parameters given."""

    def fill(found: re.Match[str]) -> str:
        value = given.get("container", "off") if found[3] else given.get(found[1], found[2])
        return json.dumps(value)  # quoted: YAML would read `off` as a falsehood

    whole: dict[str, Any] = {"AWSTemplateFormatVersion": "2010-09-09"}
    for name in names:
        part = yaml.load(PLACEHOLDER.sub(fill, (AWS / f"{name}.yml").read_text()), Loader)
        for section, entries in part.items():
            whole[section] = whole.get(section, {}) | entries
    return whole

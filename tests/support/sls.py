"""The Serverless CLI that `package.json` pins."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLS = ROOT / "node_modules" / ".bin" / "sls"
PATIENCE = 300
"""Seconds; to pack the function downloads its requirements."""


def for_this_machine() -> list[str]:
    """Arguments to pack what runs here, for stage local. For Lambda it is packed for its Python, on arm64."""
    is_arm = platform.machine() in ("arm64", "aarch64")
    linux, mac = ("aarch64", "11_0_arm64") if is_arm else ("x86_64", "10_12_x86_64")
    packed_for = {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "architecture": "arm64" if is_arm else "x86_64",
        "wheels": f"macosx_{mac}" if sys.platform == "darwin" else f"manylinux2014_{linux}",
    }
    return ["--stage", "local", *(f"--param={name}={value}" for name, value in packed_for.items())]


def run_sls(*arguments: str, environment: Mapping[str, str]) -> str:
    """Run it on a copy of the project with this environment and nothing of AWS from ours; what it printed.

    The test fails if it does, or if it is not installed where CI says that it must be; elsewhere it is skipped then.
    """
    finished = _run(arguments, environment)
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    return finished.stdout


def refused(*arguments: str, **environment: str) -> str:
    """The same, for what must fail; what it said."""
    finished = _run(arguments, environment)
    assert finished.returncode != 0, finished.stdout
    return finished.stdout + finished.stderr


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    missing = None if shutil.which("node") else "Node.js is not installed"
    if missing is None and not SLS.exists():
        missing = "the Serverless CLI is not installed: run npm ci"
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SUPABASE_"))}
    ours = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "SLS_TELEMETRY_DISABLED": "1",
    }
    return subprocess.run(
        [SLS, *arguments],
        cwd=Path(_project().name),
        env=inherited | ours | dict(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@cache
def _project() -> TemporaryDirectory[str]:
    """What of the project the framework reads, without what is its user's: their `.env`, and their stage's values."""
    folder = TemporaryDirectory(prefix="sls-")
    for name in ("functions", "infra"):
        shutil.copytree(ROOT / name, Path(folder.name) / name, ignore=shutil.ignore_patterns("__pycache__"))
    before, prod, rest = (ROOT / "serverless.yml").read_text().partition("\n  prod:\n")
    values, provider, after = rest.partition("\nprovider:\n")
    values = re.sub(r"(?m)^    (supabaseUrl|container|llm\w+):.*\n", "", values)  # those that a test leaves out
    (Path(folder.name) / "serverless.yml").write_text(before + prod + values + provider + after)
    shutil.copy(ROOT / "package.json", folder.name)
    (Path(folder.name) / "node_modules").symlink_to(ROOT / "node_modules")
    return folder

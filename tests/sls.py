"""The Serverless CLI that `package.json` pins."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLS = ROOT / "node_modules" / ".bin" / "sls"
PATIENCE = 300
"""Seconds; to pack the function downloads its requirements."""


def for_this_machine() -> list[str]:
    """Arguments to pack what runs here, for stage local. For Lambda it is packed for its Python, on arm64."""
    packed_for = {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "architecture": "x86_64",
        "wheels": "manylinux2014_x86_64",
    }
    return ["--stage", "local", *(f"--param={name}={value}" for name, value in packed_for.items())]


def run_sls(*arguments: str, environment: Mapping[str, str]) -> str:
    """Run it in the project's folder with this environment and nothing of AWS from ours; what it printed.

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
    return subprocess.run(
        [SLS, *arguments],
        cwd=ROOT,
        env=inherited | {"VIRTUAL_ENV": sys.prefix, "SLS_TELEMETRY_DISABLED": "1"} | dict(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

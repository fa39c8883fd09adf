"""The HTTP side against a fuzzer that knows its description: whatever it sends, nothing fails and nothing leaks."""

import asyncio
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.sign_in import a_guest

ADMIN_TOKEN = "an-operators-own-token-of-32-letters"
SECRET = "xylophone-in-the-cellar"
EXAMPLES = 15
SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.parametrize("who", ["user", "nobody"])
async def test_a_fuzzer_finds_no_failure_and_no_foreign_row(serve: Serve, tmp_path: Path, who: str) -> None:
    """With a user's token, or none: no 500, no answer but those described, and no word of another's conversation."""
    async with serve(auth="guest", admin_token=ADMIN_TOKEN, limit_requests=0, limit_guests=0) as server:
        owner, user = await a_guest(server.url), await a_guest(server.url)
        for token, session_id, words in ((owner.token, "theirs", SECRET), (user.token, "mine", "hello")):
            async with await ChatClient.connect(server.url, session_id, token=token) as client:
                await client.say(words)
                done = await client.until("done")
                while (await client.until("saved"))["through"] < done["seq"]:
                    pass
        async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
            described = await http.get("/openapi.json", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
            schema, report = tmp_path / "openapi.json", tmp_path / "report.har"
            # Ids that are there: of those that the pattern makes none would be.
            pattern, ids = '"pattern":"^[A-Za-z0-9_-]{1,128}$"', '"enum":["theirs","mine","x y"]'
            schema.write_text(described.text.replace(pattern, ids))
            given = ["--header", f"Authorization: Bearer {user.token}"] if who == "user" else []
            command = [SCHEMATHESIS, "run", schema, "--url", server.http, "--checks", CHECKS, "--no-color", *given]
            command += ["--max-examples", str(EXAMPLES), "--report-har-path", report, "--output-sanitize", "false"]
            command += ["--suppress-health-check", "all", "--generation-deterministic"]
            process = await asyncio.create_subprocess_exec(
                *map(str, command), cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            printed, _ = await asyncio.wait_for(process.communicate(), 120)
            assert process.returncode == 0, printed.decode()[-6000:]
            row = await http.get("/sessions/theirs", headers={"Authorization": f"Bearer {owner.token}"})
        assert row.json()["user_id"] == owner.user_id
        answers = report.read_text()
        assert "/sessions/theirs" in answers
        assert SECRET not in answers
        assert owner.user_id not in answers

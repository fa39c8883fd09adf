"""The server on Supabase, at its start: what it waits for, and what it refuses to start with, in one line."""

from contextlib import ExitStack

import psycopg
import pytest
from structlog.testing import capture_logs

import infra.store.supabase
from infra.local.postgres import Postgres
from infra.store import StoreMisconfigured
from tests.support.gateway import BAD_GATEWAY, Answer, Gateway, too_many
from tests.support.supabase import Supabase, a_lite, free_port, fresh_database, open_store

UNAUTHORIZED = b'{"code":"PGRST303","details":null,"hint":null,"message":"JWT issued at future"}'
CLOCKS_APART = Answer(
    b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(UNAUTHORIZED), UNAUTHORIZED)
)


async def test_nobody_answers_at_the_url() -> None:
    """A wrong URL, or a Supabase that stays down: refused in one line that names the variable."""
    with pytest.raises(StoreMisconfigured, match=r"^SUPABASE_URL: no answer within 0 s: Supabase: ConnectError"):
        await open_store(f"http://127.0.0.1:{free_port()}", "sb_secret_x")


async def test_something_else_answers_at_the_url(supabase: Supabase, gateway: Gateway) -> None:
    """A page of something that is no Supabase is told from one that is down."""
    page = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"
    gateway.weather.append(Answer(page))
    with pytest.raises(StoreMisconfigured, match=r"^SUPABASE_URL: what answers there is not a Supabase project"):
        await open_store(gateway.url, supabase.service_key)


async def test_a_wrong_key(supabase: Supabase) -> None:
    """It is refused in a line that names the variable, and does not quote the key."""
    wrong = "sb_secret_" + "wrong" * 6
    with pytest.raises(StoreMisconfigured, match=r"^SUPABASE_KEY: refused") as refused:
        await open_store(supabase.url, wrong)
    assert wrong not in str(refused.value)


async def test_a_key_without_rights(supabase: Supabase) -> None:
    """The anonymous key: a warning that it is no service key, and then the refusal."""
    if not supabase.anon_key:
        pytest.skip("TEST_SUPABASE_ANON_KEY is not set")
    with capture_logs() as logs, pytest.raises(StoreMisconfigured, match=r"^SUPABASE_KEY: this key may not") as refused:
        await open_store(supabase.url, supabase.anon_key)
    assert "use the service key" in str(refused.value)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
        "SUPABASE_KEY is not a service key: row-level security will refuse what the server does"
    ]


@pytest.mark.parametrize("prepare", ["nothing", "plain tables", "an older version"])
async def test_a_missing_migration(postgres: Postgres, prepare: str) -> None:
    """No tables, only the plain ones, or an older schema: refused, saying what to run."""
    url = fresh_database(postgres, migrated=prepare == "an older version")
    with psycopg.connect(url, autocommit=True) as database:
        if prepare == "plain tables":
            database.execute(
                "CREATE TABLE sessions (session_id text PRIMARY KEY, user_id text, start_time timestamptz)"
            )
        if prepare == "an older version":
            database.execute("CREATE OR REPLACE FUNCTION schema_version() RETURNS int LANGUAGE sql AS 'SELECT 0'")
    with ExitStack() as ending:
        lite = a_lite(url, ending)
        with pytest.raises(StoreMisconfigured, match="npx supabase --workdir infra db push --remote"):
            await open_store(lite.url, lite.service_key)


async def test_a_column_that_nobody_fills(postgres: Postgres) -> None:
    """One that was added since the migrations would have every session refused: the start is, and names it."""
    url = fresh_database(postgres)
    with psycopg.connect(url, autocommit=True) as database, ExitStack() as ending:
        database.execute("ALTER TABLE sessions ADD tenant text NOT NULL")
        database.execute("ALTER TABLE events ADD origin text NOT NULL DEFAULT 'chat'")
        lite = a_lite(url, ending)
        with pytest.raises(StoreMisconfigured, match=r"^the server does not fill sessions\.tenant: give it a default"):
            await open_store(lite.url, lite.service_key)
        database.execute("ALTER TABLE sessions ALTER tenant DROP NOT NULL")
        store = await open_store(lite.url, lite.service_key)
        await store.close()


async def test_a_start_waits_for_a_supabase_that_starts_too(
    supabase: Supabase, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bad answers at the start are waited out, a passing 401 of clocks apart among them."""
    monkeypatch.setattr(infra.store.supabase, "RETRY_SECONDS", 0.01)
    gateway.weather.extend([Answer(BAD_GATEWAY), too_many("0"), Answer(b""), CLOCKS_APART])
    store = await open_store(gateway.url, supabase.service_key, within=30)
    await store.ping()
    await store.close()

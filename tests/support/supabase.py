"""A Supabase for the tests: the one `TEST_SUPABASE_URL` names, or a real PostgreSQL and `@supabase/lite` of our own.

`TEST_SUPABASE_URL` and `TEST_SUPABASE_KEY` point the same tests at any other: hosted, `supabase start`, or plain
PostgREST. Tests of user tokens then need `TEST_SUPABASE_JWT_SECRET` as well, and `TEST_SUPABASE_ANON_KEY` where the
gateway asks for an API key.
"""

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import jwt
import psycopg
import pytest
from pydantic import SecretStr

from infra.local.postgres import Postgres
from infra.local.server import CannotStart
from infra.local.supabase import STANDALONE, Lite, push_migrations
from infra.settings import Settings
from infra.store.supabase import SupabaseStore


@dataclass(frozen=True)
class Supabase:
    """A Supabase under test, migrated. `anon_key` and `jwt_secret` are empty where they are not known."""

    url: str
    service_key: str
    anon_key: str
    jwt_secret: str

    def names(self) -> dict[str, str]:
        """The settings that name it."""
        return {"supabase_url": self.url, "supabase_key": self.service_key}

    def headers(self, token: str | None = None) -> dict[str, str]:
        """What a browser sends: the anonymous key, and a signed-in user's token."""
        headers = {"apikey": self.anon_key}
        return headers | {"Authorization": f"Bearer {token}"} if token else headers

    def user_token(self, user_id: str, **claims: Any) -> str:
        """A token as Supabase's sign-in gives it; without a known secret the test is skipped."""
        if not self.jwt_secret:
            pytest.skip("TEST_SUPABASE_JWT_SECRET is not set: no user token can be made")
        now = int(time.time())
        issued = {"sub": user_id, "role": "authenticated", "aud": "authenticated", "iat": now, "exp": now + 600}
        return jwt.encode(issued | {"iss": f"{self.url}/auth/v1"} | claims, self.jwt_secret, algorithm="HS256")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL with the roles of a Supabase project; a test makes its own database in it with `fresh_database`."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    folder.chmod(0o755)  # PostgreSQL does not run as root: its user must get in
    try:
        server = Postgres(folder, free_port())
        server.start()
    except CannotStart as error:
        shutil.rmtree(folder)
        unavailable(error)
    yield server
    server.stop(signal.SIGQUIT)  # at once: its files are not needed any more
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def supabase(request: pytest.FixtureRequest) -> Iterator[Supabase]:
    """The Supabase under test, shared by all: ids are fresh, and nothing is counted that others may have written."""
    if url := os.environ.get("TEST_SUPABASE_URL"):
        key = os.environ["TEST_SUPABASE_KEY"]
        anon_key = os.environ.get("TEST_SUPABASE_ANON_KEY", "")
        yield Supabase(url, key, anon_key, os.environ.get("TEST_SUPABASE_JWT_SECRET", ""))
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with ExitStack() as ending:
        lite = a_lite(fresh_database(postgres), ending)
        yield Supabase(lite.url, lite.service_key, lite.anon_key, lite.jwt_secret)


async def open_store(url: str, key: str, within: float = 0.0) -> SupabaseStore:
    """A store on the Supabase there; one that does not answer is asked again for so many seconds."""
    settings = Settings(supabase_url=url, supabase_key=SecretStr(key))
    return await SupabaseStore.open(settings, within=within)


def fresh(prefix: str) -> str:
    return f"{prefix}-{uuid4().hex}"


def fresh_database(postgres: Postgres, *, migrated: bool = True) -> str:
    """The URL of a new database, as a new Supabase project has it, with our migrations or before them."""
    name = f"db_{uuid4().hex}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    postgres.run(name, STANDALONE)
    url = postgres.url(name)
    if migrated:
        try:
            push_migrations(url)
        except FileNotFoundError as error:
            unavailable(error)
    return url


def a_lite(database_url: str, ending: ExitStack, token_seconds: int = 3600) -> Lite:
    """A running `@supabase/lite` over this database, stopped by `ending`, whose users' tokens last so long."""
    folder = Path(tempfile.mkdtemp(prefix="lite-"))
    ending.callback(shutil.rmtree, folder)
    lite = Lite(folder, database_url, free_port())
    lite.token_seconds = token_seconds
    try:
        lite.start()
    except CannotStart as error:
        unavailable(error)
    ending.callback(lite.stop)
    return lite


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def unavailable(error: Exception) -> NoReturn:
    """Skip for a user without Node or PostgreSQL; fail where nothing may be skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(error))
    pytest.skip(str(error))

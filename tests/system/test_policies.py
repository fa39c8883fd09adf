"""Who may do what over HTTP: the server, a signed-in user, and nobody. See `test_rights` for the database's word."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest

from tests.support.supabase import Supabase

NOW = "2025-01-02T03:04:05+00:00"
TABLES = ["sessions", "events", "containers"]
CHANGES = {"sessions": {"final_summary": "x"}, "events": {"content": "x"}, "containers": {"seen_at": "2026-01-01"}}
STRANGERS = ["nobody", "owner", "other"]
"""The anonymous key, and the tokens of two users: none of them may write."""


@dataclass(frozen=True)
class Person:
    """A user with one session, one event in it, and the container it was in."""

    user_id: str
    session_id: str
    container_id: str


@dataclass(frozen=True)
class Api:
    """The REST interface, as each of those who knock sees it."""

    http: httpx.Client
    supabase: Supabase
    owner: Person
    other: Person

    def headers(self, who: str) -> dict[str, str]:
        """Those of the server, of nobody, or of a user."""
        if who == "server":
            return {"apikey": self.supabase.service_key, "Authorization": f"Bearer {self.supabase.service_key}"}
        if who == "nobody":
            return self.supabase.headers()
        person: Person = getattr(self, who)
        return self.supabase.headers(self.supabase.user_token(person.user_id))

    def send(self, who: str, method: str, path: str, **options: Any) -> httpx.Response:
        """One request."""
        headers = self.headers(who) | {"Prefer": "return=representation"}
        return self.http.request(method, f"/rest/v1/{path}", headers=headers | options.pop("headers", {}), **options)

    def kept(self) -> list[Any]:
        """All that is stored of the two people."""
        rows = []
        for person in (self.owner, self.other):
            rows += self.send("server", "GET", f"sessions?user_id=eq.{person.user_id}&order=session_id").json()
            rows += self.send("server", "GET", f"events?session_id=eq.{person.session_id}&order=id").json()
            rows += self.send("server", "GET", f"containers?container_id=eq.{person.container_id}").json()
        return rows


@pytest.fixture(scope="module")
def api(supabase: Supabase) -> Iterator[Api]:
    """Two people's rows, made with the service key."""
    people = [Person(str(uuid4()), f"s-{uuid4().hex}", f"box-{uuid4().hex}") for _ in range(2)]
    with httpx.Client(base_url=supabase.url, timeout=10) as http:
        api = Api(http, supabase, *people)
        for person in people:
            opening = {"p_session_id": person.session_id, "p_user_id": person.user_id}
            opening |= {"p_at": NOW, "p_container_id": person.container_id}
            assert api.send("server", "POST", "rpc/open_session", json=opening).is_success
            for table in ("events", "containers"):
                assert api.send("server", "POST", table, json=a_row(table, person)).is_success
        assert len(api.kept()) == 6
        yield api


def a_row(table: str, person: Person) -> dict[str, Any]:
    """A good row, of this person."""
    if table == "sessions":
        return {"session_id": f"s-{uuid4().hex}", "user_id": person.user_id, "start_time": NOW}
    if table == "containers":
        return {"container_id": person.container_id, "seen_at": NOW}
    row = {"event_id": str(uuid4()), "session_id": person.session_id, "turn_id": "t", "timestamp": NOW}
    return row | {"role": "user", "content": "hello", "metadata": {}}


def of(table: str, person: Person) -> str:
    """The path that names a person's rows."""
    if table == "containers":
        return f"containers?container_id=eq.{person.container_id}"
    return f"{table}?session_id=eq.{person.session_id}"


def gave_nothing(answer: httpx.Response) -> bool:
    """Refused, or no row was there for whoever asked: both are right, and which it is depends on the server."""
    return answer.status_code in (401, 403) or (answer.status_code == 200 and answer.json() == [])


# Reading


@pytest.mark.parametrize("table", ["sessions", "events"])
def test_users_read_their_own_rows_and_no_others(api: Api, table: str) -> None:
    """All they get without a filter is theirs; asking for another's by its id gives nothing."""
    for who, person, stranger in (("owner", api.owner, api.other), ("other", api.other, api.owner)):
        rows = api.send(who, "GET", table).json()
        assert [row["session_id"] for row in rows] == [person.session_id]
        assert api.send(who, "GET", of(table, person)).json() == rows
        assert gave_nothing(api.send(who, "GET", of(table, stranger)))


def test_a_join_opens_nothing(api: Api) -> None:
    """Sessions with their events in one request: a user's own, each with its own."""
    (row,) = api.send("owner", "GET", "sessions?select=session_id,events(session_id,content)").json()
    assert row["session_id"] == api.owner.session_id
    assert row["events"] == [{"session_id": api.owner.session_id, "content": "hello"}]


@pytest.mark.parametrize("table", TABLES)
def test_the_anonymous_key_reads_nothing(api: Api, table: str) -> None:
    """There are rows, and none for nobody."""
    assert api.send("server", "GET", of(table, api.owner)).json()
    assert gave_nothing(api.send("nobody", "GET", table))
    assert gave_nothing(api.send("nobody", "GET", of(table, api.owner)))


@pytest.mark.parametrize("who", ["owner", "other"])
def test_containers_are_nobodys_business(api: Api, who: str) -> None:
    """A signed-in user does not see where the server runs."""
    assert gave_nothing(api.send(who, "GET", of("containers", api.owner)))


@pytest.mark.parametrize(
    ("flaw", "status"), [("expired", {401}), ("wrong secret", {401}), ("no subject", {200}), ("no user of ours", {200})]
)
@pytest.mark.parametrize("table", TABLES)
def test_a_token_that_is_not_good_reads_nothing(api: Api, table: str, flaw: str, status: set[int]) -> None:
    """One that was not signed here or is over is refused; one that names no user of ours is nobody's."""
    good = api.supabase.user_token(api.owner.user_id)
    claims = jwt.decode(good, options={"verify_signature": False})
    token = {
        "expired": api.supabase.user_token(api.owner.user_id, exp=int(time.time()) - 3600),
        "wrong secret": jwt.encode(claims | {"role": "service_role"}, "x" * 40, algorithm="HS256"),
        "no subject": jwt.encode(
            {name: claims[name] for name in claims if name != "sub"}, api.supabase.jwt_secret, algorithm="HS256"
        ),
        "no user of ours": api.supabase.user_token("auth0|somebody"),  # not every sign-in names its users by UUIDs
    }[flaw]
    answer = api.http.get(f"/rest/v1/{table}", headers=api.supabase.headers(token))
    assert answer.status_code in status | ({403} if table == "containers" else set())
    assert gave_nothing(answer)


# Writing


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("who", STRANGERS)
def test_nobody_but_the_server_writes(api: Api, who: str, method: str, table: str) -> None:
    """Not into the own rows, not into another's: afterwards all is as it was."""
    before = api.kept()
    for person in (api.owner, api.other):
        if method == "POST":
            answer = api.send(who, "POST", table, json=a_row(table, person))
            assert answer.status_code in (401, 403)
            again = next(row for row in before if set(row) >= set(a_row(table, person)))
            merging = {"Prefer": "resolution=merge-duplicates"}
            answer = api.send(who, "POST", table, json=again, headers=merging)
            assert answer.status_code in (401, 403)
        else:
            body = {"json": CHANGES[table]} if method == "PATCH" else {}
            assert gave_nothing(api.send(who, method, of(table, person), **body))
    assert api.kept() == before


@pytest.mark.parametrize(
    "function",
    ["open_session", "finish_session", "set_modes", "user_stats", "orphans", "schema_version", "unfilled_columns"],
)
@pytest.mark.parametrize("who", STRANGERS)
def test_nobody_but_the_server_calls_functions(api: Api, who: str, function: str) -> None:
    """They are refused, even for the user's own session, and change nothing; the service key may call them."""
    session_id, user_id = api.owner.session_id, api.owner.user_id
    opening = {"p_session_id": session_id, "p_user_id": user_id, "p_at": NOW, "p_container_id": "x"}
    arguments = {
        "open_session": opening,
        "finish_session": {"p_session_id": session_id, "p_epoch": 1, "p_ended_at": NOW, "p_summary": "x"},
        "set_modes": {"p_session_ids": session_id, "p_mode": "casual"},
        "user_stats": {"p_user_id": user_id},
        "orphans": {"p_seen_before": NOW, "p_limit": 1},
        "schema_version": {},
        "unfilled_columns": {},
    }[function]
    before = api.kept()
    assert api.send(who, "POST", f"rpc/{function}", json=arguments).status_code in (401, 403, 404)
    assert api.kept() == before
    if function in ("user_stats", "orphans", "schema_version", "unfilled_columns"):
        assert api.send("server", "POST", f"rpc/{function}", json=arguments).is_success

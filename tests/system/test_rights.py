"""Who may do what in the database itself, which has the last word. What has no guard is found, whoever adds it."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from infra.local.postgres import Postgres
from infra.local.supabase import ROOT
from tests.support.supabase import fresh_database

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[Connection]:
    """A connection to a database with our migrations and nothing else, which is what they alone bring about."""
    with psycopg.connect(fresh_database(postgres, migrated=False), autocommit=True) as connection:
        for file in sorted((ROOT / "infra" / "supabase" / "migrations").glob("*.sql")):
            connection.execute(file.read_text())
        yield connection


def test_every_table_is_guarded(database: Connection) -> None:
    """Row-level security is on, nobody but the server may write, and nobody without a sign-in read: of all tables."""
    found = database.execute("""
        select relname, relrowsecurity, rolname, array(
            select privilege from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES',
                                               'TRIGGER']) privilege
            where has_table_privilege(rolname, c.oid, privilege)
        )
        from pg_class c, pg_roles r
        where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f')
          and rolname in ('anon', 'authenticated', 'service_role')
    """).fetchall()
    assert {row[0] for row in found} >= {"sessions", "events", "containers"}
    for table, secured, role, rights in found:
        assert secured, f"{table} has no row-level security"
        if role == "service_role":
            assert {"SELECT", "INSERT", "UPDATE", "DELETE"} <= set(rights)
        else:
            readable = role == "authenticated" and table in ("sessions", "events")
            assert (table, role, rights) == (table, role, ["SELECT"] if readable else [])


def test_every_function_is_the_servers_alone(database: Connection) -> None:
    """No other role may execute one, and none has more rights than its caller, or trusts the caller's search path."""
    found = database.execute("""
        select p.oid::regprocedure::text, has_function_privilege('anon', p.oid, 'EXECUTE'),
            has_function_privilege('authenticated', p.oid, 'EXECUTE'),
            has_function_privilege('service_role', p.oid, 'EXECUTE'), prosecdef, proconfig
        from pg_proc p
        where pronamespace = 'public'::regnamespace
          and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')
    """).fetchall()
    assert len(found) >= 5
    for function, *rights in found:
        assert (function, *rights) == (function, False, False, True, False, ['search_path=""'])


def test_every_counter_is_the_servers_alone(database: Connection) -> None:
    """Nobody else moves a sequence on, or learns from it how much is said."""
    found = database.execute("""
        select relname, rolname, has_sequence_privilege(rolname, c.oid, 'USAGE, SELECT, UPDATE')
        from pg_class c, pg_roles where relnamespace = 'public'::regnamespace and relkind = 'S'
          and rolname in ('anon', 'authenticated')
    """).fetchall()
    assert found == [("events_id_seq", "anon", False), ("events_id_seq", "authenticated", False)]


def test_policies_are_the_second_wall(database: Connection) -> None:
    """Even with every right on the tables, a user reads the own rows alone, nobody reads any, and neither writes."""
    claims = "select set_config('request.jwt.claims', %s, true)"
    with database.transaction(force_rollback=True):
        database.execute("grant all on all tables in schema public to anon, authenticated")
        database.execute("insert into sessions (session_id, user_id) values ('one', 'u1'), ('two', 'u2')")
        database.execute(
            "insert into events (session_id, turn_id, role, content)"
            " values ('one', 't', 'user', ''), ('two', 't', 'user', '')"
        )
        for role, user_id, expected in (("authenticated", "u1", [("one",)]), ("anon", "u1", [])):
            database.execute(f"set local role {role}")
            database.execute(claims, (f'{{"sub": "{user_id}"}}',))
            for table in ("sessions", "events"):
                assert database.execute(f"select session_id from {table}").fetchall() == expected
                assert database.execute(f"delete from {table}").rowcount == 0
                assert database.execute(f"update {table} set session_id = session_id").rowcount == 0
            assert database.execute("select * from containers").fetchall() == []
            with pytest.raises(psycopg.errors.InsufficientPrivilege), database.transaction():
                database.execute("insert into sessions (session_id, user_id) values ('three', 'u1')")
            database.execute("reset role")


def test_no_function_answers_from_a_plan(database: Connection) -> None:
    """An immutable one is evaluated while it is planned: its answer then goes to roles that may not call it."""
    found = database.execute("""
        select proname, provolatile::text from pg_proc where pronamespace = 'public'::regnamespace
    """).fetchall()
    assert {name for name, _ in found} >= {"schema_version", "open_session", "user_stats"}
    assert [name for name, volatility in found if volatility == "i"] == []

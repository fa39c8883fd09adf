-- Who may do what: a signed-in user reads their own sessions and events, and writes nothing; nobody reads anything
-- without signing in; the service role, which bypasses row-level security, does the server's work.

alter table public.sessions enable row level security;
alter table public.events enable row level security;
alter table public.containers enable row level security;

revoke all on public.sessions, public.events, public.containers from public, anon, authenticated;
grant select on public.sessions, public.events to authenticated;
grant all on public.sessions, public.events, public.containers to service_role;

-- The token's subject, whatever its form: `auth.uid()` would fail for one that is no UUID. Inside a `select` it is read
-- once for a query and not for each row, as are the user's sessions: their events are then found by the index.
drop policy if exists "owners read their sessions" on public.sessions;
drop policy if exists "owners read their events" on public.events;
create policy "owners read their sessions" on public.sessions for select to authenticated
    using (user_id = (select auth.jwt() ->> 'sub'));
create policy "owners read their events" on public.events for select to authenticated
    using (session_id = any (array(
        select s.session_id from public.sessions s where s.user_id = (select auth.jwt() ->> 'sub')
    )));

do $$
declare
    it regprocedure;
    counter text := pg_get_serial_sequence('public.events', 'id');
begin
    foreach it in array array[
        'public.open_session(text, text, timestamptz, text)', 'public.finish_session(text, integer, timestamptz, text)',
        'public.set_modes(text, text)', 'public.user_stats(text)', 'public.schema_version()'
    ]::regprocedure[] loop
        execute format('revoke all on function %s from public, anon, authenticated', it);
        execute format('grant execute on function %s to service_role', it);
    end loop;

    execute format('revoke all on sequence %s from public, anon, authenticated', counter);
    execute format('grant usage on sequence %s to service_role', counter);
end
$$;

-- Who may do what: a signed-in user reads their own sessions and events, and writes nothing; without a sign-in nothing is
-- read; the service role, which row-level security does not hold back, does the server's work.

alter table public.sessions enable row level security;
alter table public.events enable row level security;
alter table public.containers enable row level security;

revoke all on public.sessions, public.events, public.containers from public, anon, authenticated;
grant select on public.sessions, public.events to authenticated;
grant all on public.sessions, public.events, public.containers to service_role;
grant usage on all sequences in schema public to service_role;

drop policy if exists "owners read their sessions" on public.sessions;
drop policy if exists "owners read their events" on public.events;
create policy "owners read their sessions" on public.sessions for select to authenticated
    using (user_id = (select auth.uid())::text);
create policy "owners read their events" on public.events for select to authenticated
    using (exists (
        select from public.sessions s where s.session_id = events.session_id and s.user_id = (select auth.uid())::text
    ));

do $$
declare
    it regprocedure;
begin
    foreach it in array array[
        'public.open_session(text, text, timestamptz, text)', 'public.finish_session(text, integer, timestamptz, text)',
        'public.set_modes(text, text)', 'public.user_stats(text)', 'public.schema_version()'
    ]::regprocedure[] loop
        execute format('revoke all on function %s from public, anon, authenticated', it);
        execute format('grant execute on function %s to service_role', it);
    end loop;
end
$$;

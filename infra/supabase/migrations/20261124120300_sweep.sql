-- Containers that die leave open sessions behind. The sweep finds them and hands them off.

-- Open sessions are few, and the ended ones only grow.
create index if not exists sessions_open_by_container on public.sessions (container_id)
    where end_time is null and container_id is not null;

create or replace function public.orphans(p_seen_before timestamptz, p_limit integer)
returns table (session_id text, epoch integer, last_time timestamptz)
language sql stable set search_path = '' as $$
    select s.session_id, s.epoch, coalesce(last_event.timestamp, s.start_time) as last_time
    from public.sessions s
    left join lateral (
        select e.timestamp from public.events e where e.session_id = s.session_id order by e.id desc limit 1
    ) last_event on true
    where s.end_time is null and s.container_id is not null and not exists (
        select from public.containers c where c.container_id = s.container_id and c.seen_at >= p_seen_before
    )
    order by last_time, s.session_id
    limit p_limit
$$;
comment on function public.orphans is
    'Open sessions whose container departed, never beat, or last beat before this moment, the oldest first. Those that '
    'were never in a container, as the adopted ones, are nobody''s orphans.';

create or replace function public.open_sessions(p_container_id text, p_limit integer)
returns table (session_id text, epoch integer, last_time timestamptz)
language sql stable set search_path = '' as $$
    select s.session_id, s.epoch, coalesce(last_event.timestamp, s.start_time) as last_time
    from public.sessions s
    left join lateral (
        select e.timestamp from public.events e where e.session_id = s.session_id order by e.id desc limit 1
    ) last_event on true
    where s.end_time is null and s.container_id = p_container_id
    order by last_time, s.session_id
    limit p_limit
$$;
comment on function public.open_sessions is 'The sessions of this container that have no end, the longest silent first.';

revoke all on function public.orphans(timestamptz, integer), public.open_sessions(text, integer)
    from public, anon, authenticated;
grant execute on function public.orphans(timestamptz, integer), public.open_sessions(text, integer) to service_role;

create or replace function public.schema_version() returns integer
language sql immutable set search_path = '' as $$ select 2 $$;

-- A user's figures are made of their latest 1,000 sessions: `anonymous` may have had a million.
create index if not exists sessions_by_user_and_start on public.sessions (user_id, start_time);
drop index if exists public.sessions_by_user;  -- the new one serves its queries too

create or replace function public.user_stats(p_user_id text)
returns table (sessions bigint, messages bigint, minutes double precision, last_seen timestamptz)
language sql stable set search_path = '' as $$
    with seen as (
        select s.start_time, said.number,
            coalesce(s.end_time, last_event.timestamp, s.start_time) as last_time
        from (
            select * from public.sessions where user_id = p_user_id order by start_time desc limit 1000
        ) s
        cross join lateral (
            select count(*) as number from public.events e where e.session_id = s.session_id and e.role = 'user'
        ) said
        cross join lateral (
            select max(e.timestamp) as timestamp from public.events e where e.session_id = s.session_id
        ) last_event
    )
    select count(*), coalesce(sum(number), 0)::bigint,
        coalesce(sum(greatest(0, extract(epoch from last_time - start_time))) / 60, 0)::double precision,
        max(last_time)
    from seen
$$;
comment on function public.user_stats is
    'How many sessions and messages a user has had among their latest 1,000 sessions, the minutes, and the last time.';

-- A column that must have a value, and has no default, would have every row of the server's refused.
do $$
declare
    wanting text;
begin
    select string_agg(format('%s.%s', c.table_name, c.column_name), ', ') into wanting
    from information_schema.columns c
    where c.table_schema = 'public' and c.table_name in ('sessions', 'events')
        and c.is_nullable = 'NO' and c.column_default is null and c.is_identity = 'NO' and c.is_generated = 'NEVER'
        and c.column_name not in ('session_id', 'user_id', 'turn_id', 'role', 'content');
    if wanting is not null then
        raise exception 'the server does not fill %: give each a default, or let it be null', wanting;
    end if;
end
$$;

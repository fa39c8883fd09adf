-- What an owner does with their own sessions by the server: list, name, remove; and what a user has taken today.

alter table public.sessions add column if not exists title text;

create or replace function public.list_sessions(p_user_id text, p_before text, p_limit integer)
returns table (
    session_id text, start_time timestamptz, end_time timestamptz, duration integer, mode text, title text,
    final_summary text, messages bigint
)
language sql stable set search_path = '' as $$
    select s.session_id, s.start_time, s.end_time, s.duration, s.mode, s.title, s.final_summary, (
        select count(*) from public.events e where e.session_id = s.session_id and e.role = 'user'
    )
    from public.sessions s
    where s.user_id = p_user_id and (p_before is null or (s.start_time, s.session_id) < (
        select b.start_time, b.session_id from public.sessions b where b.session_id = p_before and b.user_id = p_user_id
    ))
    order by s.start_time desc, s.session_id desc limit p_limit
$$;
comment on function public.list_sessions is 'A user''s sessions, newest first: those that follow the one named, if any.';

create or replace function public.user_tokens(p_user_id text, p_since timestamptz) returns bigint
language sql stable set search_path = '' as $$
    select coalesce(sum(
        (e.metadata -> 'usage' ->> 'input_tokens')::numeric + (e.metadata -> 'usage' ->> 'output_tokens')::numeric
    ), 0)::bigint
    from (
        select s.session_id from public.sessions s
        where s.user_id = p_user_id and (s.end_time is null or s.end_time >= p_since)
        order by s.start_time desc limit 1000
    ) latest
    join public.events e on e.session_id = latest.session_id
    where e.timestamp >= p_since and jsonb_typeof(e.metadata -> 'usage') = 'object'
        and jsonb_typeof(e.metadata -> 'usage' -> 'input_tokens') = 'number'
        and jsonb_typeof(e.metadata -> 'usage' -> 'output_tokens') = 'number'
$$;
comment on function public.user_tokens is 'The tokens, in and out, of a user''s turns that ended since then.';

create or replace function public.delete_before(p_before timestamptz, p_limit integer) returns integer
language sql volatile set search_path = '' as $$
    with removed as (
        delete from public.sessions where session_id in (
            select s.session_id from public.sessions s where s.end_time < p_before order by s.end_time limit p_limit
        )
        returning 1
    )
    select count(*)::integer from removed
$$;
comment on function public.delete_before is 'Removes sessions that ended before then, with their events; how many.';

create index if not exists sessions_by_end on public.sessions (end_time);

do $$
declare
    it regprocedure;
begin
    foreach it in array array[
        'public.list_sessions(text, text, integer)', 'public.user_tokens(text, timestamptz)',
        'public.delete_before(timestamptz, integer)'
    ]::regprocedure[] loop
        execute format('revoke all on function %s from public, anon, authenticated', it);
        execute format('grant execute on function %s to service_role', it);
    end loop;
end
$$;

create or replace function public.schema_version() returns integer
language sql stable set search_path = '' as $$ select 9 $$;

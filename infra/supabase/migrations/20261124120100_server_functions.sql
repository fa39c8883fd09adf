-- What the server must do in one atomic step. The functions run with the caller's rights, and only the service role may
-- call them.

create or replace function public.open_session(
    p_session_id text, p_user_id text, p_at timestamptz, p_container_id text
) returns setof public.sessions
language sql volatile set search_path = '' as $$
    insert into public.sessions as s (session_id, user_id, start_time, container_id)
    values (p_session_id, p_user_id, p_at, p_container_id)
    on conflict (session_id) do update set
        epoch = s.epoch + 1, container_id = excluded.container_id,
        end_time = null, duration = null, final_summary = null
    where s.user_id = excluded.user_id
    returning *
$$;
comment on function public.open_session is
    'Create the session, or open it once more: one epoch up, no end. No row where it belongs to another user.';

create or replace function public.finish_session(
    p_session_id text, p_epoch integer, p_ended_at timestamptz, p_summary text
) returns boolean
language sql volatile set search_path = '' as $$
    with finished as (
        update public.sessions
        set end_time = p_ended_at, final_summary = p_summary,
            duration = greatest(0, round(extract(epoch from p_ended_at - start_time)))::integer
        where session_id = p_session_id and epoch = p_epoch and end_time is null
        returning 1
    )
    select exists (select from finished)
$$;
comment on function public.finish_session is
    'Write the end, the duration in seconds and the summary, if the session is open at this epoch; whether it was.';

create or replace function public.set_modes(p_session_ids text, p_mode text) returns void
language sql volatile set search_path = '' as $$
    update public.sessions set mode = p_mode where session_id = any (string_to_array(p_session_ids, ','))
$$;
comment on function public.set_modes is 'Note the mode of these sessions; their ids separated by commas.';

create or replace function public.user_stats(p_user_id text)
returns table (sessions bigint, messages bigint, minutes double precision, last_seen timestamptz)
language sql stable set search_path = '' as $$
    with seen as (
        select s.start_time, said.number,
            coalesce(s.end_time, last_event.timestamp, s.start_time) as last_time
        from public.sessions s
        cross join lateral (
            select count(*) as number from public.events e where e.session_id = s.session_id and e.role = 'user'
        ) said
        cross join lateral (
            select max(e.timestamp) as timestamp from public.events e where e.session_id = s.session_id
        ) last_event
        where s.user_id = p_user_id
    )
    select count(*), coalesce(sum(number), 0)::bigint,
        coalesce(sum(greatest(0, extract(epoch from last_time - start_time))) / 60, 0)::double precision,
        max(last_time)
    from seen
$$;
comment on function public.user_stats is 'How many sessions and messages a user has had, the minutes, and the last time.';

create or replace function public.schema_version() returns integer
language sql immutable set search_path = '' as $$ select 1 $$;
comment on function public.schema_version is 'Raised by migrations that the server cannot do without; it asks at its start.';

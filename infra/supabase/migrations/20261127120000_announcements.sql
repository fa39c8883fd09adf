-- A session whose end got lost is announced again, less and less often, and not for ever. A summary that is plain only
-- because the model failed may be improved later.

alter table public.sessions
    add column if not exists announced integer not null default 0,  -- how often its end was announced again
    add column if not exists announced_at timestamptz;

-- Due 30 s after the first announcement, then after four times as long each time, and not after the eighth: two days.
create or replace function public.announcement_is_due(p_announced integer, p_announced_at timestamptz) returns boolean
language sql stable set search_path = '' as $$
    select p_announced = 0
        or (p_announced < 8 and p_announced_at + interval '30 seconds' * power(4, p_announced - 1) < now())
$$;

create or replace function public.note_announced(p_session_ids text, p_epochs text) returns jsonb
language sql volatile set search_path = '' as $$
    with noted as (
        update public.sessions s set announced = s.announced + 1, announced_at = now()
        from unnest(string_to_array(p_session_ids, ','), string_to_array(p_epochs, ',')::integer[])
            as it (session_id, epoch)
        where s.session_id = it.session_id and s.epoch = it.epoch and s.end_time is null
        returning s.session_id, s.announced
    )
    select coalesce(jsonb_agg(session_id), '[]') from noted where announced >= 8
$$;
comment on function public.note_announced is
    'Note that the ends of these sessions (ids and epochs, separated by commas) were announced once more; the ids of '
    'those that will not be any more.';

create or replace function public.improve_summary(
    p_session_id text, p_epoch integer, p_old text, p_new text
) returns boolean
language sql volatile set search_path = '' as $$
    with improved as (
        update public.sessions set final_summary = p_new
        where session_id = p_session_id and epoch = p_epoch and end_time is not null and final_summary = p_old
        returning 1
    )
    select exists (select from improved)
$$;
comment on function public.improve_summary is
    'Put another summary in the place of this one, if the session has ended and is still at this epoch; whether it was.';

create or replace function public.open_session(
    p_session_id text, p_user_id text, p_at timestamptz, p_container_id text
) returns setof public.sessions
language sql volatile set search_path = '' as $$
    insert into public.sessions as s (session_id, user_id, start_time, container_id)
    values (p_session_id, p_user_id, p_at, p_container_id)
    on conflict (session_id) do update set
        epoch = s.epoch + 1, container_id = excluded.container_id,
        end_time = null, duration = null, final_summary = null, announced = 0, announced_at = null
    where s.user_id = excluded.user_id
    returning *
$$;

create or replace function public.reopen_for_late_events() returns trigger
language plpgsql set search_path = '' as $$
begin
    update public.sessions s
    set end_time = null, duration = null, final_summary = null, announced = 0, announced_at = null
    from (select f.session_id, max(f.timestamp) as last_time from fresh f group by f.session_id) late
    where s.session_id = late.session_id and s.end_time < late.last_time;
    return null;
end
$$;

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
    ) and public.announcement_is_due(s.announced, s.announced_at)
    order by last_time, s.session_id
    limit p_limit
$$;

create or replace function public.open_sessions(p_container_id text, p_limit integer)
returns table (session_id text, epoch integer, last_time timestamptz)
language sql stable set search_path = '' as $$
    select s.session_id, s.epoch, coalesce(last_event.timestamp, s.start_time) as last_time
    from public.sessions s
    left join lateral (
        select e.timestamp from public.events e where e.session_id = s.session_id order by e.id desc limit 1
    ) last_event on true
    where s.end_time is null and s.container_id = p_container_id
        and public.announcement_is_due(s.announced, s.announced_at)
    order by last_time, s.session_id
    limit p_limit
$$;

revoke all on function
    public.announcement_is_due(integer, timestamptz), public.note_announced(text, text),
    public.improve_summary(text, integer, text, text)
    from public, anon, authenticated;
grant execute on function
    public.announcement_is_due(integer, timestamptz), public.note_announced(text, text),
    public.improve_summary(text, integer, text, text)
    to service_role;

-- Stable, not immutable: a cached plan would hand an immutable answer even to a role that may not call the function.
create or replace function public.schema_version() returns integer
language sql stable set search_path = '' as $$ select 4 $$;

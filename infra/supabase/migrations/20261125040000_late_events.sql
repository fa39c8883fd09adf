-- A session never ends before its last event. A container that is cut off is taken for dead, and its sessions are
-- summarised; then it comes back or restarts, and delivers the events it kept. Such an event reopens its session at the
-- same epoch: whoever ends it next, its container or the sweep, has the whole of it summarised.

create or replace function public.reopen_for_late_events() returns trigger
language plpgsql set search_path = '' as $$
begin
    update public.sessions s set end_time = null, duration = null, final_summary = null
    from (select f.session_id, max(f.timestamp) as last_time from fresh f group by f.session_id) late
    where s.session_id = late.session_id and s.end_time < late.last_time;
    return null;
end
$$;
comment on function public.reopen_for_late_events is 'Take the end, with its summary, from sessions that had an event since.';

drop trigger if exists reopen_for_late_events on public.events;
create trigger reopen_for_late_events after insert on public.events
    referencing new table as fresh for each statement execute function public.reopen_for_late_events();

create or replace function public.finish_session(
    p_session_id text, p_epoch integer, p_ended_at timestamptz, p_summary text
) returns boolean
language sql volatile set search_path = '' as $$
    -- Each insert of an event holds its session's key until it commits, so this waits for those under way.
    select from public.sessions where session_id = p_session_id for update;
    with finished as (
        update public.sessions s
        set end_time = p_ended_at, final_summary = p_summary,
            duration = greatest(0, round(extract(epoch from p_ended_at - start_time)))::integer
        where s.session_id = p_session_id and s.epoch = p_epoch and s.end_time is null and not exists (
            select from public.events e where e.session_id = p_session_id and e.timestamp > p_ended_at
        )
        returning 1
    )
    select exists (select from finished)
$$;
comment on function public.finish_session is
    'Write the end, the duration in seconds and the summary, if the session is open at this epoch and no event is later; '
    'whether it was.';

revoke all on function public.reopen_for_late_events() from public, anon, authenticated;
grant execute on function public.reopen_for_late_events() to service_role;

create or replace function public.schema_version() returns integer
language sql immutable set search_path = '' as $$ select 3 $$;

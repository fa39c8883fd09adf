-- What a session took of its model, beside its summary: the tokens that its turns' last events tell of.

alter table public.sessions
    add column if not exists input_tokens bigint,
    add column if not exists output_tokens bigint;

create or replace function public.finish_session(
    p_session_id text, p_epoch integer, p_ended_at timestamptz, p_summary text
) returns boolean
language sql volatile set search_path = '' as $$
    -- Each insert of an event holds its session's key until it commits, so this waits for those under way.
    select from public.sessions where session_id = p_session_id for update;
    with used as (
        select coalesce(sum((e.metadata -> 'usage' ->> 'input_tokens')::numeric), 0)::bigint as input,
            coalesce(sum((e.metadata -> 'usage' ->> 'output_tokens')::numeric), 0)::bigint as output
        from public.events e
        where e.session_id = p_session_id and jsonb_typeof(e.metadata -> 'usage') = 'object'
            and jsonb_typeof(e.metadata -> 'usage' -> 'input_tokens') = 'number'
            and jsonb_typeof(e.metadata -> 'usage' -> 'output_tokens') = 'number'
    ), finished as (
        update public.sessions s
        set end_time = p_ended_at, final_summary = p_summary,
            duration = greatest(0, round(extract(epoch from p_ended_at - start_time)))::integer,
            input_tokens = used.input, output_tokens = used.output
        from used
        where s.session_id = p_session_id and s.epoch = p_epoch and s.end_time is null and not exists (
            select from public.events e where e.session_id = p_session_id and e.timestamp > p_ended_at
        )
        returning 1
    )
    select exists (select from finished)
$$;

create or replace function public.schema_version() returns integer
language sql stable set search_path = '' as $$ select 7 $$;

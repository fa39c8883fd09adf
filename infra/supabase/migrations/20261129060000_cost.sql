-- What a session cost, where the operator's prices name its models: the sum of its turns.

alter table public.sessions add column if not exists cost double precision;

create or replace function public.finish_session(
    p_session_id text, p_epoch integer, p_ended_at timestamptz, p_summary text
) returns boolean
language sql volatile set search_path = '' as $$
    -- Each insert of an event holds its session's key until it commits, so this waits for those under way.
    select from public.sessions where session_id = p_session_id for update;
    with usages as (
        select e.metadata -> 'usage' as usage
        from public.events e
        where e.session_id = p_session_id and jsonb_typeof(e.metadata -> 'usage') = 'object'
            and jsonb_typeof(e.metadata -> 'usage' -> 'input_tokens') = 'number'
            and jsonb_typeof(e.metadata -> 'usage' -> 'output_tokens') = 'number'
    ), used as (
        select coalesce(sum((usage ->> 'input_tokens')::numeric), 0)::bigint as input,
            coalesce(sum((usage ->> 'output_tokens')::numeric), 0)::bigint as output,
            sum(case when jsonb_typeof(usage -> 'cost') = 'number' then (usage ->> 'cost')::double precision end) as cost
        from usages
    ), finished as (
        update public.sessions s
        set end_time = p_ended_at, final_summary = p_summary,
            duration = greatest(0, round(extract(epoch from p_ended_at - start_time)))::integer,
            input_tokens = used.input, output_tokens = used.output, cost = used.cost
        from used
        where s.session_id = p_session_id and s.epoch = p_epoch and s.end_time is null and not exists (
            select from public.events e where e.session_id = p_session_id and e.timestamp > p_ended_at
        )
        returning 1
    )
    select exists (select from finished)
$$;

create or replace function public.schema_version() returns integer
language sql stable set search_path = '' as $$ select 8 $$;

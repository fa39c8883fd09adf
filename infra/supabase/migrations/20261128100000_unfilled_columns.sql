-- What the server must be told at its start: columns that were added since the migrations, which it does not fill.

create or replace function public.unfilled_columns() returns text
language sql stable set search_path = '' as $$
    select string_agg(format('%s.%s', c.table_name, c.column_name), ', ' order by c.table_name, c.column_name)
    from information_schema.columns c
    where c.table_schema = 'public' and c.table_name in ('sessions', 'events')
        and c.is_nullable = 'NO' and c.column_default is null and c.is_identity = 'NO' and c.is_generated = 'NEVER'
        and c.column_name not in ('session_id', 'user_id', 'turn_id', 'role', 'content')
$$;
comment on function public.unfilled_columns is
    'Columns that must have a value, have no default and are none of the server''s: every row of its would be refused.';
revoke all on function public.unfilled_columns() from public, anon, authenticated;
grant execute on function public.unfilled_columns() to service_role;

create or replace function public.schema_version() returns integer
language sql stable set search_path = '' as $$ select 6 $$;

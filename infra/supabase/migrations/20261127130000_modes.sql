-- A mode may have any name: the container's prompts file defines them.

alter table public.sessions drop constraint if exists sessions_mode_check;

create or replace function public.schema_version() returns integer
language sql stable set search_path = '' as $$ select 5 $$;

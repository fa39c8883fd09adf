-- The sweep looks at open sessions alone, of which there are few, and not at the ended ones, which only grow.
CREATE INDEX sessions_open_by_container ON sessions (container_id)
    WHERE end_time IS NULL AND container_id IS NOT NULL;

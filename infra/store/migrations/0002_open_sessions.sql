-- The sweep looks only at open sessions, which are few, and not at ended ones, whose number only grows.
CREATE INDEX sessions_open_by_container ON sessions (container_id)
    WHERE end_time IS NULL AND container_id IS NOT NULL;

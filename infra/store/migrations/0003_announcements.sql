-- How often the end of an open session was announced, and when last, so that it is announced less and less often.
ALTER TABLE sessions ADD COLUMN announced INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN announced_at TEXT;

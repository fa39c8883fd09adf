-- A user's figures are made of their latest sessions alone: `anonymous` may have had a million.
DROP INDEX sessions_by_user;
CREATE INDEX sessions_by_user ON sessions (user_id, start_time);

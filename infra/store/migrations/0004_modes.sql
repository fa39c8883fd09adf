-- A mode may have any name: the prompts file defines them. SQLite cannot drop a check, only a column together with the
-- check on it, so the column is replaced. The table itself must stay: dropping it would delete every event with it.
ALTER TABLE sessions ADD COLUMN any_mode TEXT;
UPDATE sessions SET any_mode = mode WHERE mode IS NOT NULL;
ALTER TABLE sessions DROP COLUMN mode;
ALTER TABLE sessions RENAME COLUMN any_mode TO mode;

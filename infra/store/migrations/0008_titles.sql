-- What a session is called by its user.
ALTER TABLE sessions ADD COLUMN title TEXT;

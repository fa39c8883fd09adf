-- What a session cost, where prices are known: the sum of its turns.
ALTER TABLE sessions ADD COLUMN cost REAL;

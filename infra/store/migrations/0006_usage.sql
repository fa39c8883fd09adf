-- What a session took of its model, beside its summary: the tokens that its turns' last events tell of.
ALTER TABLE sessions ADD COLUMN input_tokens INTEGER;
ALTER TABLE sessions ADD COLUMN output_tokens INTEGER;

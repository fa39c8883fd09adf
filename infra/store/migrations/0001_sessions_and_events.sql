-- Times are ISO 8601 in UTC with microseconds, so that text order is time order.

CREATE TABLE sessions (
    session_id    TEXT PRIMARY KEY,
    user_id       TEXT NOT NULL DEFAULT 'anonymous',
    start_time    TEXT NOT NULL,
    end_time      TEXT,
    duration      INTEGER,                     -- whole seconds
    final_summary TEXT,
    mode          TEXT CHECK (mode IN ('analytical', 'casual')),
    epoch         INTEGER NOT NULL DEFAULT 1,  -- one more each time the session is opened
    container_id  TEXT
) STRICT;

CREATE INDEX sessions_by_user ON sessions (user_id);

CREATE TABLE events (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id   TEXT NOT NULL UNIQUE,           -- made by the writer: a retried insert is a no-op
    session_id TEXT NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE,
    turn_id    TEXT NOT NULL,
    role       TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'tool')),
    content    TEXT NOT NULL,
    timestamp  TEXT NOT NULL,
    metadata   TEXT NOT NULL                   -- a JSON object
) STRICT;

CREATE INDEX events_by_session ON events (session_id, id);

-- One heartbeat row per container, so that liveness costs one write per container, not per session.
CREATE TABLE containers (
    container_id TEXT PRIMARY KEY,
    seen_at      TEXT NOT NULL
) STRICT;

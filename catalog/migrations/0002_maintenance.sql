-- Names of snapshots that are kept, and the latest time that maintenance has seen.

CREATE TABLE wattlake_snapshot_name (
    name TEXT PRIMARY KEY,
    snapshot_id BIGINT NOT NULL,
    created_at {timestamptz} NOT NULL
);

-- One row: the wall clock at the last round of maintenance, microseconds since 1970 UTC; 0 before the first.
CREATE TABLE wattlake_clock (
    id BIGINT PRIMARY KEY,
    seen_at BIGINT NOT NULL
);
INSERT INTO wattlake_clock (id, seen_at) VALUES (1, 0);

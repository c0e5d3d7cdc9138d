-- What polling vendor APIs needs to remember.

-- How far something that goes on for long has come: cursors of sources, calls of credentials, steps of jobs. A cursor arrives in the same
-- transaction as the files of the readings that it stands for.
CREATE TABLE wattlake_progress (
    key TEXT PRIMARY KEY,
    state TEXT NOT NULL
);

-- OAuth tokens that rotate; sealed JSON.
CREATE TABLE wattlake_grant (
    id TEXT PRIMARY KEY,
    sealed TEXT NOT NULL,
    updated_at {timestamptz} NOT NULL
);

-- Times without a reading where the cadence of a series expects some.
CREATE TABLE wattlake_gap (
    id {uuid} PRIMARY KEY,
    source_id {uuid} NOT NULL,
    entity_id {uuid} NOT NULL,
    stream TEXT NOT NULL,
    metric TEXT NOT NULL,
    gap_from {timestamptz} NOT NULL,
    gap_to {timestamptz} NOT NULL,
    state TEXT NOT NULL,
    found_at {timestamptz} NOT NULL,
    asked BIGINT NOT NULL,
    asked_at {timestamptz} NOT NULL,
    proof TEXT
);
CREATE INDEX wattlake_gap_source ON wattlake_gap (source_id, state);

-- Long work that was asked for.
CREATE TABLE wattlake_job (
    id {uuid} PRIMARY KEY,
    source_id {uuid} NOT NULL,
    job_from {timestamptz} NOT NULL,
    job_to {timestamptz} NOT NULL,
    state TEXT NOT NULL,
    calls_planned BIGINT NOT NULL,
    error TEXT,
    created_at {timestamptz} NOT NULL,
    updated_at {timestamptz} NOT NULL
);

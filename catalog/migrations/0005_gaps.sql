-- The ledger of gaps also holds series that no vendor is asked for, and says what was expected.
CREATE TABLE wattlake_gap_2 (
    id {uuid} PRIMARY KEY,
    -- None: nobody can be asked.
    source_id {uuid},
    entity_id {uuid} NOT NULL,
    stream TEXT NOT NULL,
    metric TEXT NOT NULL,
    gap_from {timestamptz} NOT NULL,
    gap_to {timestamptz} NOT NULL,
    state TEXT NOT NULL,
    found_at {timestamptz} NOT NULL,
    asked BIGINT NOT NULL,
    asked_at {timestamptz} NOT NULL,
    proof TEXT,
    -- Microseconds between readings.
    cadence BIGINT
);
INSERT INTO wattlake_gap_2 (id, source_id, entity_id, stream, metric, gap_from, gap_to, state, found_at, asked, asked_at, proof)
    SELECT id, source_id, entity_id, stream, metric, gap_from, gap_to, state, found_at, asked, asked_at, proof FROM wattlake_gap;
DROP TABLE wattlake_gap;
ALTER TABLE wattlake_gap_2 RENAME TO wattlake_gap;
CREATE INDEX wattlake_gap_source ON wattlake_gap (source_id, state);
CREATE INDEX wattlake_gap_time ON wattlake_gap (gap_from);

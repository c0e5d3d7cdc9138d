-- The first schema. `{uuid}`, `{timestamptz}`, `{boolean}`, `{json}` and `{lake}` are replaced by the dialect's types and by
-- the schema of the DuckLake tables; the rest is common SQL of SQLite and Postgres.

CREATE TABLE sites (
    id {uuid} PRIMARY KEY,
    name TEXT NOT NULL,
    location TEXT,
    industry_type TEXT,
    description TEXT,
    metadata {json} NOT NULL,
    active {boolean} NOT NULL,
    created_at {timestamptz} NOT NULL,
    updated_at {timestamptz} NOT NULL
);

CREATE TABLE meters (
    id {uuid} PRIMARY KEY,
    site_id {uuid} NOT NULL REFERENCES sites (id),
    parent_meter_id {uuid} REFERENCES meters (id),
    name TEXT NOT NULL,
    category TEXT NOT NULL,
    reading_frequency TEXT NOT NULL,
    capacity DOUBLE PRECISION,
    description TEXT,
    metadata {json} NOT NULL,
    active {boolean} NOT NULL,
    created_at {timestamptz} NOT NULL,
    updated_at {timestamptz} NOT NULL
);
CREATE INDEX meters_site ON meters (site_id);
CREATE INDEX meters_parent ON meters (parent_meter_id);

CREATE TABLE energy_sources (
    id {uuid} PRIMARY KEY,
    meter_id {uuid} NOT NULL REFERENCES meters (id),
    name TEXT NOT NULL,
    source_type TEXT NOT NULL,
    capacity DOUBLE PRECISION,
    metadata {json} NOT NULL,
    active {boolean} NOT NULL,
    created_at {timestamptz} NOT NULL,
    updated_at {timestamptz} NOT NULL
);
CREATE INDEX energy_sources_meter ON energy_sources (meter_id);

-- Names by which devices and files call an entity.
CREATE TABLE wattlake_external_id (
    external_id TEXT PRIMARY KEY,
    entity_id {uuid} NOT NULL
);
CREATE INDEX wattlake_external_id_entity ON wattlake_external_id (entity_id);

-- Access tokens; only the SHA-256 of the secret is kept.
CREATE TABLE wattlake_token (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL,
    scopes TEXT NOT NULL,
    sites TEXT NOT NULL,
    created_at {timestamptz} NOT NULL,
    revoked_at {timestamptz}
);

-- What our planner wants to know of a data file beyond the DuckLake columns.
CREATE TABLE wattlake_file (
    data_file_id BIGINT PRIMARY KEY,
    level BIGINT NOT NULL,
    min_ts BIGINT NOT NULL,
    max_ts BIGINT NOT NULL,
    min_entity TEXT NOT NULL,
    max_entity TEXT NOT NULL,
    min_metric TEXT NOT NULL,
    max_metric TEXT NOT NULL,
    row_group_rows BIGINT NOT NULL,
    blake3 TEXT NOT NULL
);

CREATE TABLE wattlake_delete_file (
    delete_file_id BIGINT PRIMARY KEY,
    blake3 TEXT NOT NULL
);

-- One row: everything in the write-ahead log up to this sequence number is in the files of a snapshot.
CREATE TABLE wattlake_checkpoint (
    id BIGINT PRIMARY KEY,
    wal_sequence BIGINT NOT NULL
);
INSERT INTO wattlake_checkpoint (id, wal_sequence) VALUES (1, 0);

-- The DuckLake 1.0 catalog. Column order and types are the format's own.

CREATE TABLE {lake}ducklake_metadata (
    key VARCHAR NOT NULL,
    value VARCHAR NOT NULL,
    scope VARCHAR,
    scope_id BIGINT
);

CREATE TABLE {lake}ducklake_snapshot (
    snapshot_id BIGINT PRIMARY KEY,
    snapshot_time {timestamptz},
    schema_version BIGINT,
    next_catalog_id BIGINT,
    next_file_id BIGINT
);

CREATE TABLE {lake}ducklake_snapshot_changes (
    snapshot_id BIGINT PRIMARY KEY,
    changes_made VARCHAR,
    author VARCHAR,
    commit_message VARCHAR,
    commit_extra_info VARCHAR
);

CREATE TABLE {lake}ducklake_schema (
    schema_id BIGINT PRIMARY KEY,
    schema_uuid {uuid},
    begin_snapshot BIGINT,
    end_snapshot BIGINT,
    schema_name VARCHAR,
    path VARCHAR,
    path_is_relative {boolean}
);

CREATE TABLE {lake}ducklake_table (
    table_id BIGINT,
    table_uuid {uuid},
    begin_snapshot BIGINT,
    end_snapshot BIGINT,
    schema_id BIGINT,
    table_name VARCHAR,
    path VARCHAR,
    path_is_relative {boolean}
);

CREATE TABLE {lake}ducklake_view (
    view_id BIGINT,
    view_uuid {uuid},
    begin_snapshot BIGINT,
    end_snapshot BIGINT,
    schema_id BIGINT,
    view_name VARCHAR,
    dialect VARCHAR,
    sql VARCHAR,
    column_aliases VARCHAR
);

CREATE TABLE {lake}ducklake_tag (
    object_id BIGINT,
    begin_snapshot BIGINT,
    end_snapshot BIGINT,
    key VARCHAR,
    value VARCHAR
);

CREATE TABLE {lake}ducklake_column_tag (
    table_id BIGINT,
    column_id BIGINT,
    begin_snapshot BIGINT,
    end_snapshot BIGINT,
    key VARCHAR,
    value VARCHAR
);

CREATE TABLE {lake}ducklake_data_file (
    data_file_id BIGINT PRIMARY KEY,
    table_id BIGINT,
    begin_snapshot BIGINT,
    end_snapshot BIGINT,
    file_order BIGINT,
    path VARCHAR,
    path_is_relative {boolean},
    file_format VARCHAR,
    record_count BIGINT,
    file_size_bytes BIGINT,
    footer_size BIGINT,
    row_id_start BIGINT,
    partition_id BIGINT,
    encryption_key VARCHAR,
    mapping_id BIGINT,
    partial_max BIGINT
);

CREATE TABLE {lake}ducklake_file_column_stats (
    data_file_id BIGINT,
    table_id BIGINT,
    column_id BIGINT,
    column_size_bytes BIGINT,
    value_count BIGINT,
    null_count BIGINT,
    min_value VARCHAR,
    max_value VARCHAR,
    contains_nan {boolean},
    extra_stats VARCHAR
);

CREATE TABLE {lake}ducklake_file_variant_stats (
    data_file_id BIGINT,
    table_id BIGINT,
    column_id BIGINT,
    variant_path VARCHAR,
    shredded_type VARCHAR,
    column_size_bytes BIGINT,
    value_count BIGINT,
    null_count BIGINT,
    min_value VARCHAR,
    max_value VARCHAR,
    contains_nan {boolean},
    extra_stats VARCHAR
);

CREATE TABLE {lake}ducklake_delete_file (
    delete_file_id BIGINT PRIMARY KEY,
    table_id BIGINT,
    begin_snapshot BIGINT,
    end_snapshot BIGINT,
    data_file_id BIGINT,
    path VARCHAR,
    path_is_relative {boolean},
    format VARCHAR,
    delete_count BIGINT,
    file_size_bytes BIGINT,
    footer_size BIGINT,
    encryption_key VARCHAR,
    partial_max BIGINT
);

CREATE TABLE {lake}ducklake_column (
    column_id BIGINT,
    begin_snapshot BIGINT,
    end_snapshot BIGINT,
    table_id BIGINT,
    column_order BIGINT,
    column_name VARCHAR,
    column_type VARCHAR,
    initial_default VARCHAR,
    default_value VARCHAR,
    nulls_allowed {boolean},
    parent_column BIGINT,
    default_value_type VARCHAR,
    default_value_dialect VARCHAR
);

CREATE TABLE {lake}ducklake_table_stats (
    table_id BIGINT,
    record_count BIGINT,
    next_row_id BIGINT,
    file_size_bytes BIGINT
);

CREATE TABLE {lake}ducklake_table_column_stats (
    table_id BIGINT,
    column_id BIGINT,
    contains_null {boolean},
    contains_nan {boolean},
    min_value VARCHAR,
    max_value VARCHAR,
    extra_stats VARCHAR
);

CREATE TABLE {lake}ducklake_partition_info (
    partition_id BIGINT,
    table_id BIGINT,
    begin_snapshot BIGINT,
    end_snapshot BIGINT
);

CREATE TABLE {lake}ducklake_partition_column (
    partition_id BIGINT,
    table_id BIGINT,
    partition_key_index BIGINT,
    column_id BIGINT,
    transform VARCHAR
);

CREATE TABLE {lake}ducklake_file_partition_value (
    data_file_id BIGINT,
    table_id BIGINT,
    partition_key_index BIGINT,
    partition_value VARCHAR
);

CREATE TABLE {lake}ducklake_files_scheduled_for_deletion (
    data_file_id BIGINT,
    path VARCHAR,
    path_is_relative {boolean},
    schedule_start {timestamptz}
);

CREATE TABLE {lake}ducklake_inlined_data_tables (
    table_id BIGINT,
    table_name VARCHAR,
    schema_version BIGINT
);

CREATE TABLE {lake}ducklake_column_mapping (
    mapping_id BIGINT,
    table_id BIGINT,
    type VARCHAR
);

CREATE TABLE {lake}ducklake_name_mapping (
    mapping_id BIGINT,
    column_id BIGINT,
    source_name VARCHAR,
    target_field_id BIGINT,
    parent_column BIGINT,
    is_partition {boolean}
);

CREATE TABLE {lake}ducklake_schema_versions (
    begin_snapshot BIGINT,
    schema_version BIGINT,
    table_id BIGINT
);

CREATE TABLE {lake}ducklake_macro (
    schema_id BIGINT,
    macro_id BIGINT,
    macro_name VARCHAR,
    begin_snapshot BIGINT,
    end_snapshot BIGINT
);

CREATE TABLE {lake}ducklake_macro_impl (
    macro_id BIGINT,
    impl_id BIGINT,
    dialect VARCHAR,
    sql VARCHAR,
    type VARCHAR
);

CREATE TABLE {lake}ducklake_macro_parameters (
    macro_id BIGINT,
    impl_id BIGINT,
    column_id BIGINT,
    parameter_name VARCHAR,
    parameter_type VARCHAR,
    default_value VARCHAR,
    default_value_type VARCHAR
);

CREATE TABLE {lake}ducklake_sort_info (
    sort_id BIGINT,
    table_id BIGINT,
    begin_snapshot BIGINT,
    end_snapshot BIGINT
);

CREATE TABLE {lake}ducklake_sort_expression (
    sort_id BIGINT,
    table_id BIGINT,
    sort_key_index BIGINT,
    expression VARCHAR,
    dialect VARCHAR,
    sort_direction VARCHAR,
    null_order VARCHAR
);

-- Ours: the format defines no indexes, foreign readers ignore them.
CREATE INDEX ducklake_data_file_live ON {lake}ducklake_data_file (table_id, end_snapshot);
CREATE INDEX ducklake_delete_file_data ON {lake}ducklake_delete_file (data_file_id);
CREATE INDEX ducklake_file_column_stats_column ON {lake}ducklake_file_column_stats (table_id, column_id);

//! The rows that a DuckLake catalog starts with: an empty `main.measurements`.

use jiff::Timestamp;
use uuid::Uuid;

use super::{TABLE_ID, columns};
use crate::{
    Error, Result,
    db::{Db, params},
};

/// Writes the first two snapshots when there are none, and checks that the catalog belongs to this storage.
///
/// `data_path` is the storage's root as other readers address it, ending in `/`.
pub(crate) async fn create(db: &Db, data_path: &str, now: Timestamp) -> Result<()> {
    let mut tx = db.begin().await?;
    let sql = "SELECT value FROM ducklake_metadata WHERE key = 'data_path'";
    if let Some(row) = tx.row(sql, vec![]).await? {
        let stored = row.text(0)?;
        if stored != data_path {
            let files = tx.row("SELECT COUNT(*) FROM ducklake_data_file", vec![]).await?;
            let empty = files.map(|row| row.int(0)).transpose()? == Some(0);
            let moved = stored.starts_with("file://") && data_path.starts_with("file://");
            if !empty && !moved {
                return Err(Error::conflict(format!(
                    "the catalog belongs to storage {stored}, not to {data_path}; set storage.url to the former"
                )));
            }
            tx.execute("UPDATE ducklake_metadata SET value = $1 WHERE key = 'data_path'", params![data_path])
                .await?;
            tx.commit().await?;
        }
        return Ok(());
    }
    for (key, value) in [
        ("version", "1.0"),
        ("created_by", concat!("Wattlake ", env!("CARGO_PKG_VERSION"))),
        ("data_path", data_path),
        ("encrypted", "false"),
        // Inlined rows and foreign compaction would be outside our one commit verb.
        ("data_inlining_row_limit", "0"),
        ("auto_compact", "false"),
    ] {
        tx.execute("INSERT INTO ducklake_metadata (key, value) VALUES ($1, $2)", params![key, value]).await?;
    }
    for (id, schema_version, next_catalog_id, change) in
        [(0, 0, 1, "created_schema:\"main\""), (1, 1, 2, "created_table:\"main\".\"measurements\"")]
    {
        tx.execute(
            "INSERT INTO ducklake_snapshot (snapshot_id, snapshot_time, schema_version, next_catalog_id, \
             next_file_id) VALUES ($1, $2, $3, $4, 0)",
            params![id, now, schema_version, next_catalog_id],
        )
        .await?;
        tx.execute(
            "INSERT INTO ducklake_snapshot_changes (snapshot_id, changes_made) VALUES ($1, $2)",
            params![id, change],
        )
        .await?;
    }
    // The schema's folder is the storage root itself, so that the table lies at `measurements/`.
    tx.execute(
        "INSERT INTO ducklake_schema (schema_id, schema_uuid, begin_snapshot, schema_name, path, path_is_relative) \
         VALUES (0, $1, 0, 'main', '', $2)",
        params![Uuid::new_v4(), true],
    )
    .await?;
    tx.execute(
        "INSERT INTO ducklake_table (table_id, table_uuid, begin_snapshot, schema_id, table_name, path, \
         path_is_relative) VALUES ($1, $2, 1, 0, 'measurements', 'measurements/', $3)",
        params![TABLE_ID, Uuid::new_v4(), true],
    )
    .await?;
    for (order, column) in (1i64..).zip(&columns::ALL) {
        tx.execute(
            "INSERT INTO ducklake_column (column_id, begin_snapshot, table_id, column_order, column_name, \
             column_type, default_value, nulls_allowed, default_value_type, default_value_dialect) \
             VALUES ($1, 1, $2, $3, $4, $5, 'NULL', $6, 'literal', 'duckdb')",
            params![column.id, TABLE_ID, order, column.name, column.ducklake_type, column.nullable],
        )
        .await?;
    }
    tx.execute(
        "INSERT INTO ducklake_schema_versions (begin_snapshot, schema_version, table_id) VALUES (1, 1, $1)",
        params![TABLE_ID],
    )
    .await?;
    // ducklake_table_column_stats stays empty: readers would prune by it even when it is not widened in time.
    tx.execute(
        "INSERT INTO ducklake_table_stats (table_id, record_count, next_row_id, file_size_bytes) \
         VALUES ($1, 0, 0, 0)",
        params![TABLE_ID],
    )
    .await?;
    tx.commit().await
}

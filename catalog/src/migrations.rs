//! Versioned schema changes, one template for both dialects. A database of a newer version is refused untouched.

use sqlx::{
    AssertSqlSafe, Executor, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use crate::{Error, ErrorKind, Result, db::Db};

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (2, "maintenance", include_str!("../migrations/0002_maintenance.sql")),
    (3, "block sums", include_str!("../migrations/0003_block_sums.sql")),
    (4, "sources", include_str!("../migrations/0004_sources.sql")),
    (5, "gaps", include_str!("../migrations/0005_gaps.sql")),
];

/// Brings the schema to this binary's version, each step in one transaction.
pub(crate) async fn run(db: &Db) -> Result<()> {
    let postgres = matches!(db, Db::Postgres(_));
    let types: &[(&str, &str)] = if postgres {
        &[
            ("{uuid}", "UUID"),
            ("{timestamptz}", "TIMESTAMP WITH TIME ZONE"),
            ("{boolean}", "BOOLEAN"),
            ("{json}", "JSONB"),
            ("{lake}", "lake."),
        ]
    } else {
        &[
            ("{uuid}", "VARCHAR"),
            ("{timestamptz}", "VARCHAR"),
            ("{boolean}", "BIGINT"),
            ("{json}", "TEXT"),
            ("{lake}", ""),
        ]
    };
    let migrations = MIGRATIONS
        .iter()
        .map(|(version, name, template)| {
            let sql = types.iter().fold((*template).to_owned(), |sql, (from, to)| sql.replace(from, to));
            let sql = AssertSqlSafe(sql).into_sql_str();
            Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
        })
        .collect();
    let migrator = Migrator::with_migrations(migrations);
    let outcome = match db {
        Db::Sqlite { writer, .. } => migrator.run(writer).await,
        Db::Postgres(pool) => {
            pool.execute("CREATE SCHEMA IF NOT EXISTS lake").await?;
            migrator.run(pool).await
        }
    };
    outcome.map_err(|error| match error {
        MigrateError::VersionMissing(version) => Error::new(
            ErrorKind::Conflict,
            format!("the catalog has schema version {version}, newer than this program knows; use a newer wattlake"),
        ),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        other => Error::internal(format!("catalog migration: {other}")),
    })
}

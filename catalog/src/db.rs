//! One face for SQLite and Postgres: the same SQL text with `$1` placeholders, typed values in and out.
//!
//! SQLite keeps uuids and times as text and booleans as 0/1, exactly as the DuckLake format wants them; Postgres has
//! types of its own. SQLite has one writing connection and several reading ones, so that `SQLITE_BUSY` never
//! reaches a caller.

use std::{str::FromStr, time::Duration};

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use jiff::Timestamp;
use sqlx::{
    AssertSqlSafe, Column, Connection, Executor, PgPool, Postgres, Row as _, Sqlite, SqlitePool, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use uuid::Uuid;

use crate::{Error, Result};

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// A typed parameter; `None` is a NULL of that type.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Bool(Option<bool>),
    Int(Option<i64>),
    Real(Option<f64>),
    Text(Option<String>),
    Uuid(Option<Uuid>),
    Time(Option<Timestamp>),
    Json(Option<serde_json::Value>),
}

macro_rules! value_from {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Value::$variant(Some(value.into()))
            }
        }
        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self {
                Value::$variant(value.map(Into::into))
            }
        }
    )*};
}

value_from! {
    bool => Bool, i64 => Int, f64 => Real, String => Text, &str => Text, Uuid => Uuid, Timestamp => Time,
    serde_json::Value => Json, crate::SiteId => Uuid, crate::EntityId => Uuid,
}

/// Builds the parameter list of a statement.
macro_rules! params {
    ($($value:expr),* $(,)?) => { vec![$($crate::db::Value::from($value)),*] };
}
pub(crate) use params;

/// Connection pools of one catalog database.
#[derive(Clone, Debug)]
pub(crate) enum Db {
    Sqlite { writer: SqlitePool, readers: SqlitePool },
    Postgres(PgPool),
}

/// A writing transaction; dropped without commit it rolls back.
pub(crate) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// One row of a result.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Db {
    /// Opens the database, creating a SQLite file when it is missing.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let base = SqliteConnectOptions::new()
                .filename(path)
                .busy_timeout(Duration::from_secs(10))
                .journal_mode(SqliteJournalMode::Wal)
                // NORMAL would lose the last commits in a power cut, after their log segments are gone.
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true);
            let writer = SqlitePoolOptions::new()
                .max_connections(1)
                .idle_timeout(None)
                .max_lifetime(None)
                // After a commit that failed, on a full disk for example, a connection believes for ever that it is in a
                // transaction: it is closed and replaced.
                .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
                .connect_with(base.clone().create_if_missing(true))
                .await?;
            let readers = SqlitePoolOptions::new()
                .max_connections(4)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .connect_with(base.read_only(true))
                .await?;
            return Ok(Self::Sqlite { writer, readers });
        }
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| Error::invalid("catalog.url is not a valid postgres:// address"))?
            .application_name("wattlake")
            .options([
                ("search_path", "public,lake"),
                ("statement_timeout", "60s"),
                ("lock_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "60s"),
            ]);
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options)
            .await?;
        Ok(Self::Postgres(pool))
    }

    /// Starts a writing transaction. Writers are serialised: by SQLite's one connection and `BEGIN IMMEDIATE`, on
    /// Postgres by an advisory lock until the end of the transaction.
    ///
    /// # Cancel safety
    /// Not safe on Postgres (sqlx 0.9 leaves the connection inside a transaction): callers run in tasks of their own.
    pub(crate) async fn begin(&self) -> Result<Tx> {
        match self {
            Self::Sqlite { writer, .. } => Ok(Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?)),
            Self::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                tx.execute("SELECT pg_advisory_xact_lock(7239871)").await?;
                Ok(Tx::Postgres(tx))
            }
        }
    }

    pub(crate) async fn rows(&self, sql: &str, params: Vec<Value>) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite { readers, .. } => sqlite_rows(readers, sql, params).await,
            Self::Postgres(pool) => postgres_rows(pool, sql, params).await,
        }
    }

    pub(crate) async fn row(&self, sql: &str, params: Vec<Value>) -> Result<Option<Row>> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// Writes a consistent copy of the database to a new file, while others read and write.
    pub(crate) async fn copy_to(&self, path: &str) -> Result<()> {
        match self {
            Self::Sqlite { writer, .. } => {
                sqlx::query("VACUUM INTO $1").bind(path).execute(writer).await?;
                Ok(())
            }
            Self::Postgres(_) => Err(Error::invalid(
                "the catalog is on Postgres: back it up with pg_dump, and the objects of the storage with its own tools",
            )),
        }
    }

    /// Closes all connections; SQLite folds its log into the database file.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                // A reader without write permission cannot open a database in WAL mode whose side files are gone.
                let _ = sqlx::query("PRAGMA journal_mode = DELETE").execute(writer).await;
                writer.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Tx {
    pub(crate) async fn rows(&mut self, sql: &str, params: Vec<Value>) -> Result<Vec<Row>> {
        match self {
            Self::Sqlite(tx) => sqlite_rows(&mut **tx, sql, params).await,
            Self::Postgres(tx) => postgres_rows(&mut **tx, sql, params).await,
        }
    }

    pub(crate) async fn row(&mut self, sql: &str, params: Vec<Value>) -> Result<Option<Row>> {
        Ok(self.rows(sql, params).await?.into_iter().next())
    }

    /// Runs a statement and answers how many rows it changed.
    pub(crate) async fn execute(&mut self, sql: &str, params: Vec<Value>) -> Result<u64> {
        let sql = AssertSqlSafe(sql.to_owned());
        Ok(match self {
            Self::Sqlite(tx) => {
                bind_sqlite(sqlx::query(sql), params).execute(&mut **tx).await?.rows_affected()
            }
            Self::Postgres(tx) => {
                bind_postgres(sqlx::query(sql), params).execute(&mut **tx).await?.rows_affected()
            }
        })
    }

    pub(crate) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }
}

type SqliteQuery = sqlx::query::Query<'static, Sqlite, sqlx::sqlite::SqliteArguments>;
type PostgresQuery = sqlx::query::Query<'static, Postgres, sqlx::postgres::PgArguments>;

fn bind_sqlite(mut query: SqliteQuery, params: Vec<Value>) -> SqliteQuery {
    for param in params {
        query = match param {
            Value::Bool(v) => query.bind(v.map(i64::from)),
            Value::Int(v) => query.bind(v),
            Value::Real(v) => query.bind(v),
            Value::Text(v) => query.bind(v),
            Value::Uuid(v) => query.bind(v.map(|v| v.to_string())),
            Value::Time(v) => query.bind(v.map(time_text)),
            Value::Json(v) => query.bind(v.map(|v| v.to_string())),
        };
    }
    query
}

fn bind_postgres(mut query: PostgresQuery, params: Vec<Value>) -> PostgresQuery {
    for param in params {
        query = match param {
            Value::Bool(v) => query.bind(v),
            Value::Int(v) => query.bind(v),
            Value::Real(v) => query.bind(v),
            Value::Text(v) => query.bind(v),
            Value::Uuid(v) => query.bind(v),
            Value::Time(v) => {
                query.bind(v.and_then(|v| DateTime::<Utc>::from_timestamp_micros(v.as_microsecond())))
            }
            Value::Json(v) => query.bind(v),
        };
    }
    query
}

async fn sqlite_rows<'e, E: Executor<'e, Database = Sqlite>>(
    executor: E,
    sql: &str,
    params: Vec<Value>,
) -> Result<Vec<Row>> {
    let query = bind_sqlite(sqlx::query(AssertSqlSafe(sql.to_owned())), params);
    Ok(query.fetch(executor).map_ok(Row::Sqlite).try_collect().await?)
}

async fn postgres_rows<'e, E: Executor<'e, Database = Postgres>>(
    executor: E,
    sql: &str,
    params: Vec<Value>,
) -> Result<Vec<Row>> {
    let query = bind_postgres(sqlx::query(AssertSqlSafe(sql.to_owned())), params);
    Ok(query.fetch(executor).map_ok(Row::Postgres).try_collect().await?)
}

/// Text form of an instant in SQLite: the one that DuckLake readers parse.
pub(crate) fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

fn parse_time(text: &str) -> Result<Timestamp> {
    // `+00` alone is not RFC 3339; the offset is always UTC here.
    let bare = text.strip_suffix("+00").unwrap_or(text);
    format!("{bare}Z")
        .parse()
        .map_err(|error| Error::internal(format!("catalog holds a bad time `{text}`: {error}")))
}

macro_rules! getter {
    ($($name:ident, $opt:ident: $type:ty;)*) => {$(
        pub(crate) fn $opt(&self, i: usize) -> Result<Option<$type>> {
            Ok(match self {
                Row::Sqlite(row) => row.try_get(i)?,
                Row::Postgres(row) => row.try_get(i)?,
            })
        }
        pub(crate) fn $name(&self, i: usize) -> Result<$type> {
            self.$opt(i)?.ok_or_else(|| self.unexpected_null(i))
        }
    )*};
}

impl Row {
    getter! {
        int, opt_int: i64;
        text, opt_text: String;
    }

    pub(crate) fn opt_real(&self, i: usize) -> Result<Option<f64>> {
        Ok(match self {
            Row::Sqlite(row) => row.try_get(i)?,
            Row::Postgres(row) => row.try_get(i)?,
        })
    }

    pub(crate) fn bool(&self, i: usize) -> Result<bool> {
        Ok(match self {
            Row::Sqlite(row) => row.try_get::<i64, _>(i)? != 0,
            Row::Postgres(row) => row.try_get(i)?,
        })
    }

    pub(crate) fn opt_uuid(&self, i: usize) -> Result<Option<Uuid>> {
        match self {
            Row::Sqlite(row) => row
                .try_get::<Option<String>, _>(i)?
                .map(|text| {
                    text.parse().map_err(|_| Error::internal(format!("catalog holds a bad uuid `{text}`")))
                })
                .transpose(),
            Row::Postgres(row) => Ok(row.try_get(i)?),
        }
    }

    pub(crate) fn uuid(&self, i: usize) -> Result<Uuid> {
        self.opt_uuid(i)?.ok_or_else(|| self.unexpected_null(i))
    }

    pub(crate) fn opt_time(&self, i: usize) -> Result<Option<Timestamp>> {
        match self {
            Row::Sqlite(row) => {
                row.try_get::<Option<String>, _>(i)?.map(|text| parse_time(&text)).transpose()
            }
            Row::Postgres(row) => row
                .try_get::<Option<DateTime<Utc>>, _>(i)?
                .map(|time| {
                    Timestamp::from_microsecond(time.timestamp_micros())
                        .map_err(|error| Error::internal(format!("catalog holds a bad time: {error}")))
                })
                .transpose(),
        }
    }

    pub(crate) fn time(&self, i: usize) -> Result<Timestamp> {
        self.opt_time(i)?.ok_or_else(|| self.unexpected_null(i))
    }

    pub(crate) fn json(&self, i: usize) -> Result<serde_json::Value> {
        match self {
            Row::Sqlite(row) => serde_json::from_str(&row.try_get::<String, _>(i)?)
                .map_err(|error| Error::internal(format!("catalog holds bad JSON: {error}"))),
            Row::Postgres(row) => Ok(row.try_get(i)?),
        }
    }

    fn unexpected_null(&self, i: usize) -> Error {
        let name = match self {
            Row::Sqlite(row) => row.column(i).name(),
            Row::Postgres(row) => row.column(i).name(),
        };
        Error::internal(format!("catalog column {name} is unexpectedly null"))
    }
}

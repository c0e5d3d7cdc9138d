//! Reading an existing Postgres database with tables of the same kind: sites, meters, energy_sources, measurements.
//!
//! All of it is read in one transaction that sees one state. Columns that the database does not have are left empty; everything comes as
//! text, so that enums, domains and numbers of any width are fine.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    str::FromStr,
};

use futures::TryStreamExt;
use serde_json::{Map, Value};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgRow},
};

use crate::{
    Category, EnergySourceDraft, Error, ErrorKind, IndustryType, MeterDraft, ReadingFrequency, Result,
    SiteDraft,
};

/// Tables that are read.
const TABLES: [&str; 4] = ["sites", "meters", "energy_sources", "measurements"];
/// Tables of older forms of that schema, which have nothing to import.
const OLDER: [&str; 7] = [
    "portfolios",
    "assets",
    "asset_types",
    "asset_connections",
    "energy_connections",
    "grid_links",
    "recommendations",
];

/// A reading of a foreign database.
#[derive(Clone, Debug, PartialEq)]
pub struct ForeignReading {
    pub entity_id: String,
    pub entity_type: Option<String>,
    /// Microseconds since 1970 UTC.
    pub ts: i64,
    pub metric: String,
    pub value: f64,
    pub unit: Option<String>,
    pub quality: Option<String>,
    /// JSON text.
    pub metadata: Option<String>,
}

/// A row that cannot be taken: its id and why.
pub type Refused = (String, String);

/// An open database.
pub struct ForeignDatabase {
    connection: PgConnection,
    /// Types of columns by table.
    columns: BTreeMap<String, BTreeMap<String, String>>,
    older: Vec<String>,
    /// The zone of times without one.
    zone: Option<String>,
    /// Whether rows of measurements have places in an order.
    has_places: bool,
}

fn failed(error: &sqlx::Error) -> Error {
    // Addresses hold passwords: only what the server says is told.
    let (kind, words) = match error {
        sqlx::Error::Database(error) => {
            // Classes of <https://www.postgresql.org/docs/current/errcodes-appendix.html>: a connection, a password, resources, an
            // operator. Everything else is a table that is not as it is expected to be.
            let code = error.code().unwrap_or_default();
            let is_away = ["08", "28", "53", "57", "58"].iter().any(|class| code.starts_with(class));
            let kind = if is_away { ErrorKind::Unavailable } else { ErrorKind::Invalid };
            (kind, error.message().to_owned())
        }
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => (ErrorKind::Invalid, error.to_string()),
        other => (ErrorKind::Unavailable, other.to_string()),
    };
    Error::new(kind, format!("the Postgres database: {words}"))
}

impl ForeignDatabase {
    /// Opens a database and looks at its tables. `zone`: an IANA zone for times without an offset.
    ///
    /// # Errors
    /// When it cannot be reached, or has none of the tables.
    pub async fn open(url: &str, zone: Option<&str>) -> Result<Self> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|_| {
                Error::invalid(
                    "this is no address of a database; write postgres://user:password@host:5432/name",
                )
            })?
            .application_name("wattlake import")
            // That reading all of it takes long is no news.
            .disable_statement_logging();
        let mut connection = PgConnection::connect_with(&options).await.map_err(|error| failed(&error))?;
        sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut connection)
            .await
            .map_err(|error| failed(&error))?;
        let rows = sqlx::query(
            "SELECT table_name::text, column_name::text, data_type::text FROM information_schema.columns \
             WHERE table_schema = ANY (current_schemas(false))",
        )
        .fetch_all(&mut connection)
        .await
        .map_err(|error| failed(&error))?;
        let mut columns: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut older = BTreeSet::new();
        for row in &rows {
            let cell = |at: usize| row.try_get::<String, _>(at).map_err(|error| failed(&error));
            let (table, column, kind) = (cell(0)?, cell(1)?, cell(2)?);
            if OLDER.contains(&table.as_str()) {
                older.insert(table);
            } else if TABLES.contains(&table.as_str()) {
                columns.entry(table).or_default().insert(column, kind);
            }
        }
        if columns.is_empty() {
            return Err(Error::invalid(format!(
                "the database has none of the tables {} in its search path",
                TABLES.join(", ")
            )));
        }
        let (older, zone) = (older.into_iter().collect(), zone.map(str::to_owned));
        let mut this = Self { connection, columns, older, zone, has_places: false };
        this.has_places = this.stamp().await?.is_some();
        Ok(this)
    }

    /// Tables that are not read.
    pub fn ignored(&self) -> &[String] {
        &self.older
    }

    /// Columns of a table as texts, those that it does not have as nulls; none when there is no such table.
    fn select(&self, table: &str, names: &[&str]) -> Option<String> {
        let known = self.columns.get(table)?;
        let text = |name: &&str| match known.contains_key(*name) {
            true => format!("{name}::text"),
            false => "NULL::text".to_owned(),
        };
        Some(format!("SELECT {} FROM {table}", names.iter().map(text).collect::<Vec<_>>().join(", ")))
    }

    async fn entities<T>(
        &mut self,
        table: &str,
        names: &[&str],
        read: impl Fn(&Texts) -> std::result::Result<T, String>,
    ) -> Result<(Vec<T>, Vec<Refused>)> {
        let (mut found, mut refused) = (Vec::new(), Vec::new());
        let Some(sql) = self.select(table, names) else { return Ok((found, refused)) };
        let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await.map_err(|error| failed(&error))? {
            let texts = Texts { row: &row, names };
            match read(&texts) {
                Ok(one) => found.push(one),
                Err(words) => {
                    let id = texts.text("id").unwrap_or_else(|| "?".to_owned());
                    refused.push((format!("{table} {id}"), words));
                }
            }
        }
        Ok((found, refused))
    }

    /// The sites.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sites(&mut self) -> Result<(Vec<SiteDraft>, Vec<Refused>)> {
        let names = ["id", "name", "location", "industry_type", "description", "metadata", "active"];
        self.entities("sites", &names, |row| {
            Ok(SiteDraft {
                id: Some(row.parse("id")?),
                name: row.required("name")?,
                location: row.text("location"),
                industry_type: row
                    .text("industry_type")
                    .map(|text| text.parse().unwrap_or(IndustryType::Other)),
                description: row.text("description"),
                metadata: row.metadata()?,
                active: row.flag("active"),
            })
        })
        .await
    }

    /// The meters, each after the one that it is below.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn meters(&mut self) -> Result<(Vec<MeterDraft>, Vec<Refused>)> {
        let names = [
            "id",
            "site_id",
            "parent_meter_id",
            "name",
            "category",
            "reading_frequency",
            "capacity",
            "description",
            "metadata",
            "active",
        ];
        let (mut left, refused) = self
            .entities("meters", &names, |row| {
                let category = row.required("category")?;
                Ok(MeterDraft {
                    id: Some(row.parse("id")?),
                    site_id: row.parse("site_id")?,
                    parent_meter_id: row
                        .text("parent_meter_id")
                        .map(|_| row.parse("parent_meter_id"))
                        .transpose()?,
                    name: row.required("name")?,
                    category: category.to_uppercase().parse::<Category>().map_err(|error| error.message)?,
                    reading_frequency: row
                        .text("reading_frequency")
                        .and_then(|text| text.parse().ok())
                        .unwrap_or(ReadingFrequency::Min15),
                    capacity: row.number("capacity")?,
                    description: row.text("description"),
                    metadata: row.metadata()?,
                    active: row.flag("active"),
                })
            })
            .await?;
        let (mut ordered, mut known) = (Vec::new(), HashSet::new());
        loop {
            let is_ready =
                |meter: &MeterDraft| meter.parent_meter_id.is_none_or(|parent| known.contains(&parent));
            let (ready, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(is_ready);
            left = rest;
            if ready.is_empty() {
                break;
            }
            known.extend(ready.iter().filter_map(|meter| meter.id));
            ordered.extend(ready);
        }
        // Those of a circle, or below something that is not there: whoever stores them says so.
        ordered.extend(left);
        Ok((ordered, refused))
    }

    /// The energy sources, with their secrets in plain text as they are there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sources(&mut self) -> Result<(Vec<EnergySourceDraft>, Vec<Refused>)> {
        let names = ["id", "meter_id", "name", "source_type", "capacity", "metadata", "active"];
        self.entities("energy_sources", &names, |row| {
            Ok(EnergySourceDraft {
                id: Some(row.parse("id")?),
                meter_id: row.parse("meter_id")?,
                name: row.required("name")?,
                source_type: row.required("source_type")?,
                capacity: row.number("capacity")?,
                metadata: row.metadata()?,
                active: row.flag("active"),
            })
        })
        .await
    }

    /// How many readings the database thinks that it has; `None` where it does not know.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn estimate(&mut self) -> Result<Option<u64>> {
        if !self.columns.contains_key("measurements") {
            return Ok(None);
        }
        let row =
            sqlx::query("SELECT reltuples::float8 FROM pg_class WHERE oid = to_regclass('measurements')")
                .fetch_optional(&mut self.connection)
                .await
                .map_err(|error| failed(&error))?;
        let rows = row.and_then(|row| row.try_get::<f64, _>(0).ok());
        Ok(rows.filter(|rows| *rows > 0.0).map(|rows| rows as u64))
    }

    /// What tells whether the readings are still those of another time: how many rows were ever inserted, changed and deleted. `None`
    /// where nobody counts, and where rows have no order of their own: in partitions and views.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn stamp(&mut self) -> Result<Option<String>> {
        let sql = "SELECT concat_ws(' ', c.oid, pg_relation_filenode(c.oid), s.n_tup_ins, s.n_tup_upd, s.n_tup_del, d.stats_reset) \
                   FROM pg_class c JOIN pg_stat_all_tables s ON s.relid = c.oid JOIN pg_stat_database d ON d.datname = current_database() \
                   WHERE c.oid = to_regclass('measurements') AND c.relkind = 'r' AND NOT EXISTS (SELECT 1 FROM pg_inherits WHERE inhparent = c.oid)";
        sqlx::query("SELECT pg_stat_clear_snapshot()")
            .execute(&mut self.connection)
            .await
            .map_err(|error| failed(&error))?;
        let row =
            sqlx::query(sql).fetch_optional(&mut self.connection).await.map_err(|error| failed(&error))?;
        row.map(|row| row.try_get::<String, _>(0)).transpose().map_err(|error| failed(&error))
    }

    /// Hands over the readings, some thousand at a time, in the order in which they lie there; rows without an id, a time, a metric or a
    /// value are counted and left out. `take` is also told the place of the last row; `after` such a place it goes on, as long as the
    /// [stamp](Self::stamp) is the same.
    ///
    /// # Errors
    /// When the database does not answer, times have no zone and none was given, or `take` fails.
    pub async fn measurements<E: From<Error>>(
        &mut self,
        rows_at_once: usize,
        after: Option<&str>,
        mut take: impl AsyncFnMut(Vec<ForeignReading>, u64, String) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let Some(known) = self.columns.get("measurements") else { return Ok(()) };
        let has = |name: &str| known.contains_key(name);
        if let Some(missing) =
            ["entity_id", "timestamp", "metric", "value"].into_iter().find(|name| !has(name))
        {
            return Err(Error::invalid(format!("the table measurements has no column {missing}")).into());
        }
        let time = match (known["timestamp"].as_str(), &self.zone) {
            ("timestamp without time zone", None) => {
                return Err(Error::invalid(
                    "the times of the table measurements have no zone; name it, for example --time-zone UTC",
                )
                .into());
            }
            ("timestamp without time zone", Some(zone)) => {
                format!("\"timestamp\" AT TIME ZONE '{}'", zone.replace('\'', "''"))
            }
            _ => "\"timestamp\"".to_owned(),
        };
        let text = |name: &str| if has(name) { format!("{name}::text") } else { "NULL::text".to_owned() };
        let place = if self.has_places { "ctid::text" } else { "''::text" };
        let mut sql = format!(
            "SELECT entity_id::text, {}, (extract(epoch FROM {time}) * 1000000)::bigint, metric::text, value::float8, {}, {}, {}, {place} \
             FROM measurements",
            text("entity_type"),
            text("unit"),
            text("quality"),
            text("metadata")
        );
        if let Some(after) = after {
            sql += &format!(" WHERE ctid > '{}'::tid", after.replace('\'', "''"));
        }
        // In the order of the table, from its beginning.
        for setting in ["synchronize_seqscans = off", "max_parallel_workers_per_gather = 0"] {
            let set = format!("SET LOCAL {setting}");
            sqlx::query(AssertSqlSafe(set))
                .execute(&mut self.connection)
                .await
                .map_err(|error| failed(&error))?;
        }
        let mut rows = sqlx::query(AssertSqlSafe(sql)).fetch(&mut self.connection);
        let (mut batch, mut left_out, mut last) = (Vec::new(), 0, String::new());
        while let Some(row) = rows.try_next().await.map_err(|error| failed(&error))? {
            match reading(&row).map_err(|error| failed(&error))? {
                Some(reading) => batch.push(reading),
                None => left_out += 1,
            }
            if batch.len() >= rows_at_once {
                last = row.try_get(8).map_err(|error| failed(&error))?;
                take(std::mem::take(&mut batch), std::mem::take(&mut left_out), last.clone()).await?;
            }
        }
        if !batch.is_empty() || left_out > 0 {
            take(batch, left_out, last).await?;
        }
        Ok(())
    }
}

fn reading(row: &PgRow) -> std::result::Result<Option<ForeignReading>, sqlx::Error> {
    let text = |at: usize| row.try_get::<Option<String>, _>(at);
    let (ts, value) = (row.try_get::<Option<i64>, _>(2)?, row.try_get::<Option<f64>, _>(4)?);
    let (Some(entity_id), Some(ts), Some(metric), Some(value)) = (text(0)?, ts, text(3)?, value) else {
        return Ok(None);
    };
    let (entity_type, unit, quality, metadata) = (text(1)?, text(5)?, text(6)?, text(7)?);
    Ok(Some(ForeignReading { entity_id, entity_type, ts, metric, value, unit, quality, metadata }))
}

/// A row of texts.
struct Texts<'a> {
    row: &'a PgRow,
    names: &'a [&'a str],
}

impl Texts<'_> {
    fn text(&self, name: &str) -> Option<String> {
        let at = self.names.iter().position(|known| *known == name)?;
        self.row.try_get::<Option<String>, _>(at).ok().flatten()
    }

    fn required(&self, name: &str) -> std::result::Result<String, String> {
        self.text(name).ok_or_else(|| format!("{name} is null"))
    }

    fn parse<T: FromStr>(&self, name: &str) -> std::result::Result<T, String> {
        let text = self.required(name)?;
        text.parse().map_err(|_| format!("{name}: `{text}` is no uuid"))
    }

    fn number(&self, name: &str) -> std::result::Result<Option<f64>, String> {
        self.text(name)
            .map(|text| text.parse().map_err(|_| format!("{name}: `{text}` is no number")))
            .transpose()
    }

    fn metadata(&self) -> std::result::Result<Map<String, Value>, String> {
        let Some(text) = self.text("metadata") else { return Ok(Map::new()) };
        match serde_json::from_str(&text) {
            Ok(Value::Object(metadata)) => Ok(metadata),
            Ok(Value::Null) => Ok(Map::new()),
            _ => Err("metadata is no JSON object".to_owned()),
        }
    }

    fn flag(&self, name: &str) -> bool {
        self.text(name).is_none_or(|text| !["false", "f", "0"].contains(&text.as_str()))
    }
}

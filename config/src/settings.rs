//! The settings themselves: names, defaults and checks.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{ByteCount, ConfigError, Period};

/// Everything that can be configured. The serialized default is also the list of valid keys, so every field
/// serializes (no `Option`): an empty string means "not set".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where the catalog, the log and local Parquet files live.
    pub data_dir: DataDir,
    /// IANA zone of sites that name none in `metadata.timezone`.
    pub time_zone: ZoneName,
    pub catalog: Catalog,
    pub storage: Storage,
    pub http: Http,
    pub postgres: PostgresWire,
    pub flight: Flight,
    pub tls: Tls,
    pub wal: Wal,
    pub flush: Flush,
    pub memory: Memory,
    pub compaction: Compaction,
    pub snapshots: Snapshots,
    pub delta: Delta,
    /// How long readings are kept; without rules for ever.
    pub retention: Vec<RetentionRule>,
    pub ingest: Ingest,
    pub sources: Sources,
    pub query: Query,
    pub carbon: Carbon,
    pub log: Log,
    /// Metrics beside the built-in ones, by name.
    pub metrics: BTreeMap<String, MetricDefinition>,
}

/// The data directory; `./wattlake-data` by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DataDir(pub PathBuf);

impl Default for DataDir {
    fn default() -> Self {
        Self("./wattlake-data".into())
    }
}

/// An IANA time-zone name; `UTC` by default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ZoneName(pub String);

impl Default for ZoneName {
    fn default() -> Self {
        Self("UTC".into())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Catalog {
    /// `sqlite:PATH` or `postgres://...`; empty: `catalog.db` in the data directory.
    pub url: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// A directory, `file:///...` or `s3://bucket/prefix`; empty: `lake/` in the data directory.
    pub url: String,
    pub s3: S3,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3 {
    pub endpoint: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub allow_http: bool,
    /// Local disk for what the store does not take; 0: none.
    pub spool: ByteCount,
    /// Local disk for what was read; 0: none.
    pub cache: ByteCount,
}

impl Default for S3 {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            region: String::new(),
            access_key: String::new(),
            secret_key: String::new(),
            allow_http: false,
            spool: ByteCount::mib(4096),
            cache: ByteCount::mib(4096),
        }
    }
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    pub listen: String,
    /// Connections served at once; further ones wait in the listen queue.
    pub max_connections: usize,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8787".into(), max_connections: 1024 }
    }
}

/// The Postgres wire endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresWire {
    /// Empty: off.
    pub listen: String,
    /// Connections at once; further ones are refused.
    pub max_connections: usize,
    /// A connection that asks nothing for this long is closed.
    pub idle_timeout: Period,
}

impl Default for PostgresWire {
    fn default() -> Self {
        Self { listen: "127.0.0.1:5488".into(), max_connections: 100, idle_timeout: Period::secs(3600) }
    }
}

/// The Flight SQL endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flight {
    /// Empty: off.
    pub listen: String,
    /// Connections served at once; further ones wait in the listen queue.
    pub max_connections: usize,
}

impl Default for Flight {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8788".into(), max_connections: 100 }
    }
}

/// The certificate of all endpoints; with it they speak nothing but TLS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// A PEM file with the certificate chain; empty: no TLS.
    pub cert: String,
    /// A PEM file with the private key.
    pub key: String,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// After fsync (WAL-1).
    #[default]
    Durable,
    /// After the write; fsync follows within 100 ms.
    Fast,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wal {
    pub durability: Durability,
    /// A segment is closed when it grows past this.
    pub segment_bytes: ByteCount,
}

impl Default for Wal {
    fn default() -> Self {
        Self { durability: Durability::Durable, segment_bytes: ByteCount::mib(64) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Flush {
    /// Readings older than this are written to Parquet.
    pub interval: Period,
    /// The memtable is written out when it grows past this.
    pub max_bytes: ByteCount,
}

impl Default for Flush {
    fn default() -> Self {
        Self { interval: Period::secs(300), max_bytes: ByteCount::mib(32) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    /// Readings in memory, waiting for or in flush; writes beyond it are answered 429.
    pub budget: ByteCount,
}

impl Default for Memory {
    fn default() -> Self {
        Self { budget: ByteCount::mib(512) }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Compaction {
    /// How often files are looked over for merging, retention and expiry.
    pub interval: Period,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { interval: Period::secs(60) }
    }
}

/// A Delta Lake table beside the archive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delta {
    /// How often a server brings it up to date; 0: only when asked.
    pub interval: Period,
}

impl Default for Delta {
    fn default() -> Self {
        Self { interval: Period::secs(0) }
    }
}

/// How long earlier states of the archive can be asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Snapshots {
    /// Snapshots that were superseded longer ago expire, unless they have a name.
    pub keep: Period,
    /// Objects of expired snapshots are deleted after this: longer than any query takes.
    pub grace: Period,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { keep: Period::secs(7 * 24 * 3600), grace: Period::secs(3600) }
    }
}

/// Readings older than `keep` are deleted, where metric and site are those named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionRule {
    /// Empty: every metric.
    #[serde(default)]
    pub metric: String,
    /// A site's name or id; empty: every site.
    #[serde(default)]
    pub site: String,
    pub keep: Period,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ingest {
    /// Unknown line-protocol series and external ids become meters instead of errors.
    pub auto_register: bool,
    pub max_new_entities_per_minute: u32,
    /// Largest request body after decompression.
    pub max_body_bytes: ByteCount,
    /// Request bodies in work at once, all together; beyond it 429.
    pub max_inflight_bytes: ByteCount,
    /// Disk that one bulk import may take for sorting.
    pub import_spill: ByteCount,
    /// Readings further in the future than this are refused.
    pub max_future: Period,
    /// `created_at` is truncated to this: finer costs more bytes than the value itself.
    pub created_at_resolution: Period,
    /// Line protocol to entity and metric, first match wins.
    pub mappings: Vec<LineMapping>,
}

impl Default for Ingest {
    fn default() -> Self {
        Self {
            auto_register: true,
            max_new_entities_per_minute: 1000,
            max_body_bytes: ByteCount::mib(64),
            max_inflight_bytes: ByteCount::mib(256),
            import_spill: ByteCount::mib(64 << 10),
            max_future: Period::secs(24 * 3600),
            created_at_resolution: Period::secs(60),
            mappings: Vec::new(),
        }
    }
}

/// Polling of vendor APIs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sources {
    /// Whether sources that use an API are polled.
    pub poll: bool,
    /// Disk for what vendors answered, to be decoded again with `wattlake replay`; 0: answers are not kept.
    pub archive: ByteCount,
}

impl Default for Sources {
    fn default() -> Self {
        Self { poll: true, archive: ByteCount::mib(0) }
    }
}

/// One rule from a line-protocol field to a reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LineMapping {
    /// The line's measurement name; required.
    pub measurement: String,
    /// Tags that the line must carry with these values.
    pub tags: BTreeMap<String, String>,
    /// The field this rule is for; empty: every numeric field.
    pub field: String,
    /// The entity: a uuid or a registered external id; empty: resolved from the line as without a rule.
    pub entity: String,
    /// The metric; empty: as without a rule.
    pub metric: String,
    /// The unit of the field's numbers; empty: as the line says.
    pub unit: String,
}

/// How readings of a metric combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetricKind {
    /// Time-weighted mean in a bucket, sum across entities (power).
    GaugeExtensive,
    /// Mean in a bucket, mean across entities (temperature).
    GaugeIntensive,
    /// Sum in a bucket, sum across entities (energy of an interval).
    Interval,
    /// Increase in a bucket, sum across entities (cumulative counter).
    Register,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricDefinition {
    pub kind: MetricKind,
    /// The canonical unit that is stored.
    pub unit: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Query {
    pub timeout: Period,
    /// Memory of one query; sorts and aggregates beyond it spill to disk or fail.
    pub memory: ByteCount,
    /// Memory of all queries together; at least that of one.
    pub total_memory: ByteCount,
    /// Disk that all queries together may spill to.
    pub spill: ByteCount,
    pub max_rows: u64,
    /// Queries at work at once; further ones wait up to five seconds, then 429.
    pub max_concurrent: usize,
    /// The same for the queries of one token, so that one dashboard does not keep all others waiting.
    pub max_concurrent_per_token: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            timeout: Period::secs(30),
            memory: ByteCount::mib(256),
            total_memory: ByteCount::mib(1024),
            spill: ByteCount::mib(2048),
            max_rows: 10_000_000,
            max_concurrent: 8,
            max_concurrent_per_token: 6,
        }
    }
}

/// Emissions of energy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Carbon {
    /// kg of CO2 equivalents per kWh by source type, instead of the built-in ones. `grid` must be given: it differs by country
    /// and year.
    pub factors: BTreeMap<String, f64>,
}

/// Over the life of a plant: the medians of IPCC AR5, Working Group III, Annex III, table A.III.2.
const EMISSION_MEDIANS: [(&str, f64); 8] = [
    ("biomass", 0.23),
    ("coal", 0.82),
    ("gas", 0.49),
    ("geothermal", 0.038),
    ("hydro", 0.024),
    ("nuclear", 0.012),
    ("solar", 0.041),
    ("wind", 0.011),
];

impl Carbon {
    /// kg of CO2 equivalents per kWh of a source type.
    pub fn factor(&self, source_type: &str) -> Option<f64> {
        let built_in =
            || EMISSION_MEDIANS.iter().find(|(name, _)| *name == source_type).map(|(_, factor)| *factor);
        self.factors.get(source_type).copied().or_else(built_in)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// A level (`info`) or directives (`info,wattlake_engine=debug`).
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into() }
    }
}

impl Settings {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the key and the valid choice.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, message: String| Err(ConfigError::Invalid { key: key.to_owned(), message });
        if self.data_dir.0.as_os_str().is_empty() {
            return invalid("data_dir", "is empty; name a directory".into());
        }
        if jiff::tz::TimeZone::get(&self.time_zone.0).is_err() {
            let zone = &self.time_zone.0;
            return invalid("time_zone", format!("`{zone}` is not an IANA zone, for example Europe/Berlin"));
        }
        let url = &self.catalog.url;
        if !(url.is_empty()
            || ["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)))
        {
            return invalid("catalog.url", "must start with sqlite: or postgres://".into());
        }
        let storage = &self.storage.url;
        if storage.contains("://") && !storage.starts_with("file://") && !storage.starts_with("s3://") {
            return invalid("storage.url", "must be a directory, file:///dir or s3://bucket/prefix".into());
        }
        if self.http.listen.parse::<SocketAddr>().is_err() {
            let listen = &self.http.listen;
            return invalid(
                "http.listen",
                format!("`{listen}` is not ADDRESS:PORT, for example 127.0.0.1:8787"),
            );
        }
        for (key, listen) in
            [("postgres.listen", &self.postgres.listen), ("flight.listen", &self.flight.listen)]
        {
            if !listen.is_empty() && listen.parse::<SocketAddr>().is_err() {
                return invalid(
                    key,
                    format!("`{listen}` is neither ADDRESS:PORT nor empty, which switches it off"),
                );
            }
        }
        if self.tls.cert.is_empty() != self.tls.key.is_empty() {
            return invalid("tls", "tls.cert and tls.key belong together; set both or none".into());
        }
        if self.memory.budget < self.flush.max_bytes {
            let flush = self.flush.max_bytes;
            return invalid("memory.budget", format!("must be at least flush.max_bytes ({flush})"));
        }
        let positive: [(&str, u64); 13] = [
            ("compaction.interval", u64::from(!self.compaction.interval.0.is_zero())),
            ("wal.segment_bytes", self.wal.segment_bytes.0),
            ("flush.max_bytes", self.flush.max_bytes.0),
            ("flush.interval", u64::from(!self.flush.interval.0.is_zero())),
            ("ingest.max_body_bytes", self.ingest.max_body_bytes.0),
            ("query.max_rows", self.query.max_rows),
            ("query.memory", self.query.memory.0),
            ("query.max_concurrent", self.query.max_concurrent as u64),
            ("query.max_concurrent_per_token", self.query.max_concurrent_per_token as u64),
            ("http.max_connections", self.http.max_connections as u64),
            ("postgres.max_connections", self.postgres.max_connections as u64),
            ("postgres.idle_timeout", u64::from(!self.postgres.idle_timeout.0.is_zero())),
            ("flight.max_connections", self.flight.max_connections as u64),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return invalid(key, "must be more than zero".into());
        }
        if self.snapshots.grace.0 < self.query.timeout.0 {
            let timeout = self.query.timeout;
            return invalid("snapshots.grace", format!("must be at least query.timeout ({timeout})"));
        }
        for (i, rule) in self.retention.iter().enumerate() {
            if rule.keep.0.as_secs() < 3600 {
                return invalid(&format!("retention[{i}].keep"), "must be at least an hour".into());
            }
        }
        for (i, mapping) in self.ingest.mappings.iter().enumerate() {
            if mapping.measurement.is_empty() {
                return invalid(&format!("ingest.mappings[{i}].measurement"), "is required".into());
            }
        }
        Ok(())
    }

    /// The catalog's address, with the default filled in.
    pub fn catalog_url(&self) -> String {
        if self.catalog.url.is_empty() {
            format!("sqlite:{}", self.data_dir.0.join("catalog.db").display())
        } else {
            self.catalog.url.clone()
        }
    }

    /// The settings as TOML, secrets replaced by `***`.
    pub fn to_redacted_toml(&self) -> String {
        let mut copy = self.clone();
        for secret in [&mut copy.storage.s3.secret_key, &mut copy.storage.s3.access_key] {
            if !secret.is_empty() {
                *secret = "***".into();
            }
        }
        if let Some((head, tail)) = copy.catalog.url.split_once('@')
            && let Some((user, _)) = head.rsplit_once(':')
            && user.contains("//")
        {
            copy.catalog.url = format!("{user}:***@{tail}");
        }
        toml::to_string_pretty(&copy).unwrap_or_default()
    }
}

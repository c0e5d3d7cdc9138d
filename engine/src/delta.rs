//! Export as a Delta Lake table: a log beside the same Parquet files, for readers that know Delta and not DuckLake.
//!
//! A version lists the live files of a snapshot. Delta readers of protocol 1 know no deleted rows, so files with some are rewritten
//! first. Versions are written by this process alone; the log is for reading, and a foreign version in it stops the export.
//! Format: the Delta transaction log protocol, reader version 1, writer version 2
//! (<https://github.com/delta-io/delta/blob/master/PROTOCOL.md>).

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Fields, Schema},
    json::ReaderBuilder,
};
use bytes::Bytes;
use jiff::Timestamp;
use parquet::arrow::ArrowWriter;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wattlake_catalog::{DataFile, Manifest, columns, failpoint};

use crate::{
    Engine, Error, ErrorKind, Result,
    archive::Level,
    background,
    compaction::{Compactor, Job},
    flush::month_of,
};

/// What this export remembers, relative to the storage's root and outside of the table.
const STATE: &str = "delta/state.json";
const LOG: &str = "measurements/_delta_log";
/// Versions between two checkpoints, from which readers start.
const CHECKPOINT_EVERY: u64 = 64;
/// How often files with deleted rows are rewritten beside running flushes.
const ROUNDS_UNLOCKED: usize = 3;
const ENGINE_INFO: &str = concat!("wattlake/", env!("CARGO_PKG_VERSION"));

/// A version of the Delta table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeltaReport {
    pub version: u64,
    pub files: usize,
    pub rows: u64,
    /// Files that came and went with this version; none when the table was up to date.
    pub added: usize,
    pub removed: usize,
}

/// The table as of the last version.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct State {
    table_id: uuid::Uuid,
    created_at_ms: i64,
    version: u64,
    /// Of the checkpoints that are kept, ascending.
    checkpoints: Vec<u64>,
    /// The oldest version whose log entry is kept.
    oldest: u64,
    /// The `add` action of each live file, by path.
    files: BTreeMap<String, Value>,
}

impl Engine {
    /// Exports when `delta.interval` says that it is time.
    pub(crate) async fn export_delta_if_due(&self) -> Result<()> {
        let interval = self.settings().delta.interval.0;
        let mut exported_at = self.delta_turn().lock().await;
        if interval.is_zero() || exported_at.is_some_and(|at| at.elapsed() < interval) {
            return Ok(());
        }
        self.export_version().await?;
        *exported_at = Some(Instant::now());
        Ok(())
    }

    /// Makes the Delta table show everything that was acknowledged before the call.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when somebody else wrote to the Delta log.
    pub async fn export_delta(self: &Arc<Self>) -> Result<DeltaReport> {
        self.flush().await?;
        let _maintenance = self.maintenance_pause().await;
        let mut exported_at = self.delta_turn().lock().await;
        let report = self.export_version().await?;
        *exported_at = Some(Instant::now());
        Ok(report)
    }

    async fn export_version(&self) -> Result<DeltaReport> {
        let manifest = self.manifest_without_deletes().await?;
        let now = Timestamp::now().as_millisecond();
        let state = match self.storage().read_if_present(STATE).await? {
            Some(bytes) => Some(
                serde_json::from_slice::<State>(&bytes)
                    .map_err(|error| Error::corrupt(format!("{STATE}: {error}")))?,
            ),
            None => None,
        };
        let mut actions = Vec::new();
        let (mut state, version) = match state {
            Some(state) => {
                let version = state.version + 1;
                (state, version)
            }
            None => {
                let state = State {
                    table_id: uuid::Uuid::new_v4(),
                    created_at_ms: now,
                    version: 0,
                    checkpoints: Vec::new(),
                    oldest: 0,
                    files: BTreeMap::new(),
                };
                actions.extend(state.head());
                (state, 0)
            }
        };
        let live: BTreeMap<&str, &Arc<DataFile>> =
            manifest.files.iter().map(|file| (file.stored.path.as_str(), file)).collect();
        let gone: Vec<String> =
            state.files.keys().filter(|path| !live.contains_key(path.as_str())).cloned().collect();
        let new: Vec<&Arc<DataFile>> =
            manifest.files.iter().filter(|file| !state.files.contains_key(&file.stored.path)).collect();
        let report = DeltaReport {
            version,
            files: live.len(),
            rows: manifest.live_rows(),
            added: new.len(),
            removed: gone.len(),
        };
        if version > 0 && new.is_empty() && gone.is_empty() {
            return Ok(DeltaReport { version: state.version, ..report });
        }
        for path in gone {
            actions.push(json!({ "remove": { "path": path, "deletionTimestamp": now, "dataChange": true } }));
            state.files.remove(&path);
        }
        for file in new {
            let add = add_action(file, now)?;
            actions.push(json!({ "add": add }));
            state.files.insert(file.stored.path.clone(), add);
        }
        let operation = json!({ "commitInfo": {
            "timestamp": now, "operation": "WRITE", "operationParameters": {}, "engineInfo": ENGINE_INFO,
            "wattlakeSnapshot": manifest.snapshot.0,
        } });
        actions.insert(0, operation);
        state.version = version;
        self.write_version(&state, &actions).await?;
        failpoint!("export.after_version");
        if version > 0 && version.is_multiple_of(CHECKPOINT_EVERY) {
            self.write_checkpoint(&mut state).await?;
        }
        let text = serde_json::to_vec(&state).map_err(|error| Error::internal(format!("delta: {error}")))?;
        self.storage().put_at(STATE, text.into()).await?;
        Ok(report)
    }

    /// The newest snapshot once none of its files has deleted rows.
    async fn manifest_without_deletes(&self) -> Result<Arc<Manifest>> {
        let compactor = Compactor {
            storage: self.storage(),
            journal: self.journal(),
            versions: self.versions(),
            flush_lock: self.flush_lock(),
        };
        // Corrections may come in meanwhile: the last time they wait.
        let mut lock = None;
        for round in 0..=ROUNDS_UNLOCKED {
            if round == ROUNDS_UNLOCKED {
                lock = Some(self.flush_lock().lock().await);
            }
            let manifest = Arc::clone(&self.versions().current().manifest);
            let with_deletes: Vec<_> = manifest.files.iter().filter(|file| file.delete.is_some()).collect();
            if with_deletes.is_empty() {
                return Ok(manifest);
            }
            for file in with_deletes {
                let (month, _) = month_of(file.bounds.min_ts)?;
                let job = Job { month, level: Level::of_number(file.level), inputs: vec![file.id] };
                compactor.attempt(&job, lock.as_ref()).await?;
            }
        }
        Ok(Arc::clone(&self.versions().current().manifest))
    }

    async fn write_version(&self, state: &State, actions: &[Value]) -> Result<()> {
        let path = format!("{LOG}/{:020}.json", state.version);
        if let Some(found) = self.storage().read_if_present(&path).await? {
            // A version that was written just before a crash is written again, with what is true now.
            let is_ours = String::from_utf8_lossy(&found).contains("\"engineInfo\":\"wattlake/");
            let next = format!("{LOG}/{:020}.json", state.version + 1);
            if !is_ours || self.storage().read_if_present(&next).await?.is_some() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "version {} of the Delta table is there already, from another writer or of a table that {STATE} \
                         does not know: the export is for reading. Delete {LOG} and {STATE} to start anew",
                        state.version
                    ),
                ));
            }
        }
        let mut text = String::new();
        for action in actions {
            text.push_str(&action.to_string());
            text.push('\n');
        }
        self.storage().put_at(&path, text.into()).await
    }

    /// Writes a checkpoint of the newest version, and deletes what lies before the last checkpoint but one.
    async fn write_checkpoint(&self, state: &mut State) -> Result<()> {
        let mut actions = state.head();
        actions.extend(state.files.values().map(|add| json!({ "add": add })));
        let size = actions.len();
        let bytes = background::run("delta-checkpoint", move || encode_checkpoint(&actions)).await?;
        let path = format!("{LOG}/{:020}.checkpoint.parquet", state.version);
        self.storage().put_at(&path, bytes).await?;
        let last = json!({ "version": state.version, "size": size });
        self.storage().put_at(&format!("{LOG}/_last_checkpoint"), last.to_string().into()).await?;
        state.checkpoints.push(state.version);
        if state.checkpoints.len() > 2 {
            let first = state.checkpoints.remove(0);
            let delete = async |name: String| {
                self.storage().delete(&object_store::path::Path::from(format!("{LOG}/{name}"))).await
            };
            for version in state.oldest..state.checkpoints[0] {
                delete(format!("{version:020}.json")).await?;
            }
            delete(format!("{first:020}.checkpoint.parquet")).await?;
            state.oldest = state.checkpoints[0];
        }
        Ok(())
    }
}

impl State {
    /// Protocol and description of the table.
    fn head(&self) -> Vec<Value> {
        let mut fields: Vec<Value> = columns::ALL
            .iter()
            .map(|column| {
                let data_type = match column.ducklake_type {
                    "timestamptz" => "timestamp",
                    "float64" => "double",
                    _ => "string",
                };
                json!({ "name": column.name, "type": data_type, "nullable": column.nullable, "metadata": {} })
            })
            .collect();
        // Only in the log: readers skip files by it.
        fields.push(json!({ "name": "month", "type": "string", "nullable": true, "metadata": {} }));
        let schema = json!({ "type": "struct", "fields": fields });
        vec![
            json!({ "protocol": { "minReaderVersion": 1, "minWriterVersion": 2 } }),
            json!({ "metaData": {
                "id": self.table_id, "name": "measurements", "format": { "provider": "parquet", "options": {} },
                "schemaString": schema.to_string(), "partitionColumns": ["month"],
                "configuration": {}, "createdTime": self.created_at_ms,
            } }),
        ]
    }
}

/// A live file as Delta names it, with its bounds.
fn add_action(file: &DataFile, now: i64) -> Result<Value> {
    let bounds = &file.bounds;
    let (month, _) = month_of(bounds.min_ts)?;
    // Bounds in milliseconds, never tighter than the rows.
    let time = |ms: i64| {
        let time =
            Timestamp::from_millisecond(ms).map_err(|error| Error::internal(format!("delta: {error}")))?;
        Ok::<_, Error>(time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
    };
    let (min, max) = (bounds.min_ts.div_euclid(1000), bounds.max_ts.div_euclid(1000) + 1);
    let stats = json!({
        "numRecords": file.rows,
        "minValues": { "entity_id": bounds.min_entity, "timestamp": time(min)?, "metric": bounds.min_metric },
        "maxValues": { "entity_id": bounds.max_entity, "timestamp": time(max)?, "metric": bounds.max_metric },
        "nullCount": { "entity_id": 0, "timestamp": 0, "metric": 0 },
    });
    Ok(json!({
        "path": file.stored.path, "partitionValues": { "month": month }, "size": file.stored.bytes,
        "modificationTime": now, "dataChange": true, "stats": stats.to_string(),
    }))
}

/// Actions as the Parquet file that the protocol wants of a checkpoint.
fn encode_checkpoint(actions: &[Value]) -> Result<Bytes> {
    let schema = Arc::new(checkpoint_schema());
    let mut decoder = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(8192).build_decoder()?;
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, None)?;
    let mut write = |batch: Option<RecordBatch>| batch.map_or(Ok(()), |batch| writer.write(&batch));
    for chunk in actions.chunks(4096) {
        decoder.serialize(chunk)?;
        write(decoder.flush()?)?;
    }
    Ok(writer.into_inner()?.into())
}

fn checkpoint_schema() -> Schema {
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, true);
    let group = |name: &str, fields: Vec<Field>| field(name, DataType::Struct(Fields::from(fields)));
    let map = |name: &str| {
        let entries =
            vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
        let entries = Field::new("key_value", DataType::Struct(Fields::from(entries)), false);
        field(name, DataType::Map(Arc::new(entries), false))
    };
    let texts = DataType::List(Arc::new(Field::new("element", DataType::Utf8, false)));
    Schema::new(vec![
        group(
            "protocol",
            vec![field("minReaderVersion", DataType::Int32), field("minWriterVersion", DataType::Int32)],
        ),
        group(
            "metaData",
            vec![
                field("id", DataType::Utf8),
                field("name", DataType::Utf8),
                group("format", vec![field("provider", DataType::Utf8), map("options")]),
                field("schemaString", DataType::Utf8),
                field("partitionColumns", texts),
                map("configuration"),
                field("createdTime", DataType::Int64),
            ],
        ),
        group(
            "add",
            vec![
                field("path", DataType::Utf8),
                map("partitionValues"),
                field("size", DataType::Int64),
                field("modificationTime", DataType::Int64),
                field("dataChange", DataType::Boolean),
                field("stats", DataType::Utf8),
            ],
        ),
        group(
            "remove",
            vec![
                field("path", DataType::Utf8),
                field("deletionTimestamp", DataType::Int64),
                field("dataChange", DataType::Boolean),
            ],
        ),
    ])
}

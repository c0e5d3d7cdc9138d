//! The query service: one way to ask, whatever the protocol.
//!
//! Queries run on a runtime of their own with large stacks, each with its own memory pool; results come back as a stream
//! of batches. A dropped stream stops its query.

mod stream;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use datafusion::{
    common::ScalarValue,
    error::DataFusionError,
    execution::{
        SessionStateBuilder,
        context::SQLOptions,
        disk_manager::{DiskManager, DiskManagerMode},
        memory_pool::FairSpillPool,
        object_store::ObjectStoreRegistry,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt;
use object_store::ObjectStore;
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use wattlake_catalog::{Access, SnapshotAt};
use wattlake_engine::{CheckedStore, Engine, ReadView};

pub(crate) use stream::ResultStream;

use crate::{
    error::{ApiError, Kind, Result},
    sql::{KeyOrder, WattlakeSchema, parse_query},
};

/// How long a query waits for its turn.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// Planner and expression recursion need room, in debug builds most of all.
const STACK_BYTES: usize = 64 << 20;
const BATCH_ROWS: usize = 8192;
/// Batches that may wait for a slow reader.
const BATCHES_AHEAD: usize = 4;

/// A question in SQL.
#[derive(Clone, Debug)]
pub struct SqlRequest {
    pub query: String,
    pub params: Vec<ScalarValue>,
    /// An earlier snapshot instead of the newest state.
    pub as_of: Option<SnapshotAt>,
    /// What is read, when that is settled already.
    pub(crate) view: Option<ReadView>,
    pub access: Access,
    /// Rows of one metric in order of entity and time, consumed as they come. Files are merged as they stream, which
    /// takes little memory, instead of read side by side and sorted; `query.max_rows`, which is about answers, does not
    /// apply.
    pub(crate) feeds_rollup: bool,
}

impl SqlRequest {
    /// A question without parameters, about the newest state.
    pub fn new(query: impl Into<String>, access: &Access) -> Self {
        let (params, access) = (Vec::new(), access.clone());
        Self { query: query.into(), params, as_of: None, view: None, access, feeds_rollup: false }
    }
}

/// Answers queries.
pub struct QueryService {
    engine: Arc<Engine>,
    runtime: Option<Runtime>,
    turns: Arc<Semaphore>,
    shared: Arc<RuntimeEnv>,
}

impl std::fmt::Debug for QueryService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryService").finish_non_exhaustive()
    }
}

/// Knows the archive and nothing else: no file system, no network.
#[derive(Debug)]
struct ArchiveOnly(Arc<dyn ObjectStore>);

impl ObjectStoreRegistry for ArchiveOnly {
    fn register_store(&self, _: &url::Url, _: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, url: &url::Url) -> datafusion::error::Result<Arc<dyn ObjectStore>> {
        if url.scheme() == "wattlake" {
            return Ok(Arc::clone(&self.0));
        }
        Err(DataFusionError::Plan("queries read the archive only".to_owned()))
    }
}

impl QueryService {
    /// # Errors
    /// When the spill directory or the threads cannot be made.
    pub fn new(engine: Arc<Engine>) -> Result<Self> {
        let settings = engine.settings().query.clone();
        let spill = spill_dir(&engine)?;
        let disk = DiskManager::builder()
            .with_mode(DiskManagerMode::Directories(vec![spill]))
            .with_max_temp_directory_size(settings.spill.0);
        // Scans bring the files of their snapshot.
        let no_files = CheckedStore::new(engine.storage(), []);
        let shared = RuntimeEnvBuilder::new()
            .with_disk_manager_builder(disk)
            .with_object_store_registry(Arc::new(ArchiveOnly(Arc::new(no_files))))
            .build_arc()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| ApiError::internal(format!("cannot start query threads: {error}")))?;
        Ok(Self {
            engine,
            runtime: Some(runtime),
            turns: Arc::new(Semaphore::new(settings.max_concurrent)),
            shared,
        })
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    fn runtime(&self) -> Result<&Runtime> {
        self.runtime.as_ref().ok_or_else(|| ApiError::new(Kind::Unavailable, "the server is stopping"))
    }

    /// Does work on the threads of queries; who no longer waits for it stops it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let task = AbortOnDropHandle::new(self.runtime()?.spawn(work));
        task.await
            .map_err(|_| ApiError::internal("the query failed unexpectedly; the server's log says more"))?
    }

    /// Plans and starts a query. The answer's schema is known when this returns; rows follow in the stream.
    ///
    /// # Errors
    /// Anything that is not one readable query; errors while running come at the end of the stream.
    pub(crate) async fn sql(&self, request: SqlRequest) -> Result<ResultStream> {
        let turn = timeout(QUEUE_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            metrics::counter!("wattlake_queries_refused_total").increment(1);
            return Err(ApiError::new(
                Kind::Overloaded,
                "too many queries at once (query.max_concurrent); try again",
            ));
        };
        let settings = &self.engine.settings().query;
        let limit = settings.timeout.0;
        let rows_max = if request.feeds_rollup { u64::MAX } else { settings.max_rows };
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let (schema_sender, schema) = tokio::sync::oneshot::channel();
        let (engine, memory, shared) =
            (Arc::clone(&self.engine), settings.memory.as_usize(), Arc::clone(&self.shared));
        let started = Instant::now();
        let task = self.runtime()?.spawn(async move {
            let _turn = turn;
            let mut clock = Allowance::new(limit);
            let planned = clock.spend(plan(engine, request, memory, &shared)).await;
            let (mut batches, context) = match planned.and_then(|planned| planned) {
                Ok(planned) => planned,
                Err(error) => return drop(schema_sender.send(Err(error))),
            };
            if schema_sender.send(Ok(batches.schema())).is_err() {
                return;
            }
            let mut rows = 0;
            loop {
                let batch = match clock.spend(batches.next()).await {
                    Ok(None) => break,
                    Ok(Some(Ok(batch))) => Ok(batch),
                    Ok(Some(Err(error))) => Err(error.into()),
                    Err(error) => Err(error),
                };
                rows += batch.as_ref().map_or(0, RecordBatch::num_rows) as u64;
                let batch = if rows > rows_max {
                    Err(ApiError::new(
                        Kind::Unprocessable,
                        format!("the result has more rows than query.max_rows = {rows_max}; add a LIMIT or a filter"),
                    ))
                } else {
                    batch
                };
                let is_error = batch.is_err();
                // A reader that is gone, or an error: either way there is no more to do.
                if sender.send(batch).await.is_err() || is_error {
                    break;
                }
            }
            metrics::histogram!("wattlake_query_seconds").record(started.elapsed());
            drop(context);
        });
        let schema = schema.await.map_err(|_| ApiError::internal("the query failed while it was planned"))?;
        Ok(ResultStream::new(schema?, receiver, task))
    }

    /// Runs a query and collects its rows.
    ///
    /// # Errors
    /// Anything that is not one readable query, or goes beyond the limits of one.
    pub async fn collect(&self, request: SqlRequest) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let mut stream = self.sql(request).await?;
        let mut batches = Vec::new();
        while let Some(batch) = stream.next().await {
            batches.push(batch?);
        }
        Ok((stream.schema(), batches))
    }
}

impl Drop for QueryService {
    fn drop(&mut self) {
        // A runtime must not be dropped, which waits, inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Time that a query may work; waiting for its reader is not work.
pub(crate) struct Allowance {
    left: Duration,
    limit: Duration,
}

impl Allowance {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { left: limit, limit }
    }

    pub(crate) async fn spend<T>(&mut self, work: impl Future<Output = T>) -> Result<T> {
        let started = Instant::now();
        let outcome = timeout(self.left, work).await;
        self.left = self.left.saturating_sub(started.elapsed());
        outcome.map_err(|_| {
            let limit = wattlake_config::Period(self.limit);
            ApiError::new(Kind::Unprocessable, format!("the query took longer than query.timeout = {limit}"))
        })
    }
}

async fn plan(
    engine: Arc<Engine>,
    request: SqlRequest,
    memory: usize,
    shared: &RuntimeEnv,
) -> Result<(datafusion::execution::SendableRecordBatchStream, SessionContext)> {
    let statement = parse_query(&request.query)?;
    let view = match (request.view, request.as_of) {
        (Some(view), _) => view,
        (None, Some(at)) => engine.read_view_at(at).await?,
        (None, None) => engine.read_view(),
    };
    let environment = RuntimeEnv {
        memory_pool: Arc::new(FairSpillPool::new(memory)),
        disk_manager: Arc::clone(&shared.disk_manager),
        cache_manager: Arc::clone(&shared.cache_manager),
        object_store_registry: Arc::clone(&shared.object_store_registry),
    };
    let mut config = session_config();
    if request.feeds_rollup {
        config = config.with_extension(Arc::new(KeyOrder));
    }
    let context = SessionContext::new_with_state(
        SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(Arc::new(environment))
            .with_default_features()
            .build(),
    );
    let zone = &engine.settings().time_zone.0;
    WattlakeSchema::new(view, engine.catalog().fleet(), request.access, zone).register(&context)?;
    let mut plan = context.state().statement_to_plan(statement).await?;
    let readable = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    readable.verify_plan(&plan)?;
    if !request.params.is_empty() {
        plan = plan.with_param_values(request.params)?;
    }
    let stream = context.execute_logical_plan(plan).await?.execute_stream().await?;
    Ok((stream, context))
}

fn session_config() -> SessionConfig {
    SessionConfig::new()
        .with_default_catalog_and_schema("wattlake", "public")
        .with_information_schema(false)
        .with_batch_size(BATCH_ROWS)
        .with_target_partitions(std::thread::available_parallelism().map_or(2, usize::from))
        .set_bool("datafusion.execution.parquet.pushdown_filters", true)
        .set_bool("datafusion.execution.parquet.reorder_filters", true)
        // Not counted in the pool of a query, and by default 100 MB for each file that is being read.
        .set_usize("datafusion.execution.parquet.max_predicate_cache_size", 16 << 20)
        .set_str("datafusion.sql_parser.dialect", "postgres")
        .set_str("datafusion.execution.time_zone", "UTC")
        // Our memory limit is smaller than what a sort keeps back for its merge by default.
        .set_usize("datafusion.execution.sort_spill_reservation_bytes", 1 << 20)
        .set_bool("datafusion.execution.enable_recursive_ctes", false)
}

/// The folder for spill files; what a killed process left in it goes.
fn spill_dir(engine: &Engine) -> Result<PathBuf> {
    let path = engine.settings().data_dir.0.join("tmp");
    let make = || {
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir_all(&path)
    };
    make().map_err(|error| ApiError::internal(format!("cannot make {}: {error}", path.display())))?;
    Ok(path)
}

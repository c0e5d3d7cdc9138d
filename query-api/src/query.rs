//! The query service: one way to ask, whatever the protocol.
//!
//! Queries run on a runtime of their own with large stacks, each with its own memory pool; results come back as a stream
//! of batches. A dropped stream stops its query.

mod memory;
mod slack;
mod stream;
mod turns;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    common::ScalarValue,
    error::DataFusionError,
    execution::{
        context::SQLOptions,
        disk_manager::{DiskManager, DiskManagerMode},
        object_store::ObjectStoreRegistry,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::LogicalPlan,
    physical_plan::execute_stream,
    prelude::SessionContext,
    sql::{parser::Statement, sqlparser::ast},
};
use futures::StreamExt;
use object_store::ObjectStore;
use tokio::{
    runtime::{Handle, Runtime},
    sync::mpsc,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use wattlake_catalog::{Access, SnapshotAt};
use wattlake_engine::{CheckedStore, Engine, ReadView};

use slack::without_slack;
use stream::{End, Reached, STEP, too_long};

pub(crate) use stream::ResultStream;

use self::{
    memory::{GivenUp, QueryMemory, SharedMemory},
    turns::{QUEUE_WAIT, Turns},
};
use crate::{
    error::{ApiError, Kind, Result},
    rollup::{RollupRequest, rollup_of},
    sql::{
        FleetTables, Rollups, Sessions, WattlakeSchema, keeps_groups, only_reads, parse_query, reads_little,
    },
};

/// Planner and expression recursion need room, in debug builds most of all.
const STACK_BYTES: usize = 64 << 20;
/// Batches that may wait for a slow reader.
const BATCHES_AHEAD: usize = 4;
/// How long a reader may take none of them before its query is given up: it keeps memory, and others from their turn.
const READER_WAIT: Duration = Duration::from_secs(30);

/// What is asked before anybody asks, and how long that may take.
const SMALL_QUESTION: &str = "SELECT date_trunc('day', timestamp) AS day, avg(value), max(value), count(*) \
    FROM (SELECT timestamp, value FROM measurements WHERE value > 0 LIMIT 1) GROUP BY 1 ORDER BY 1";
const WARM_UP: Duration = Duration::from_millis(500);

/// How a question is put.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Text(String),
    /// By a protocol with a parser of its own.
    Parsed(Arc<ast::Statement>),
}

/// A question in SQL.
#[derive(Clone, Debug)]
pub struct SqlRequest {
    pub(crate) question: Question,
    pub params: Vec<ScalarValue>,
    /// An earlier snapshot instead of the newest state.
    pub as_of: Option<SnapshotAt>,
    /// What is read, when that is settled already.
    pub(crate) view: Option<ReadView>,
    pub access: Access,
    /// Less than `query.timeout`.
    pub(crate) timeout: Option<Duration>,
    /// Part of a rollup, which has a turn of its own: rows of one metric in order of entity and time, consumed as they
    /// come. Files are merged as they stream, which takes little memory, instead of read side by side and sorted;
    /// `query.max_rows`, which is about answers, does not apply.
    pub(crate) feeds_rollup: bool,
}

impl SqlRequest {
    /// A question without parameters, about the newest state.
    pub fn new(query: impl Into<String>, access: &Access) -> Self {
        Self::about(Question::Text(query.into()), access)
    }

    /// The same of a statement that was parsed already.
    pub(crate) fn parsed(statement: Arc<ast::Statement>, access: &Access) -> Self {
        Self::about(Question::Parsed(statement), access)
    }

    fn about(question: Question, access: &Access) -> Self {
        let (params, access) = (Vec::new(), access.clone());
        Self { question, params, as_of: None, view: None, access, timeout: None, feeds_rollup: false }
    }
}

/// Answers queries.
pub struct QueryService {
    engine: Arc<Engine>,
    threads: Handle,
    /// Of the service that made them; others only work on them.
    runtime: Option<Runtime>,
    turns: Arc<Turns>,
    planner: Arc<Planner>,
}

/// What plans are made with.
struct Planner {
    engine: Arc<Engine>,
    sessions: Sessions,
    fleet_tables: Arc<FleetTables>,
    /// Without a memory pool, which each query has of its own.
    shared: Arc<RuntimeEnv>,
    memory: Arc<SharedMemory>,
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
        let memory = Arc::new(SharedMemory::new(settings.total_memory.max(settings.memory).as_usize()));
        let planner = Planner {
            engine: Arc::clone(&engine),
            sessions: Sessions::new()?,
            fleet_tables: Arc::default(),
            shared,
            memory,
        };
        let turns = Turns::new(settings.max_concurrent, settings.max_concurrent_per_token);
        Ok(Self {
            engine,
            threads: runtime.handle().clone(),
            runtime: Some(runtime),
            turns: Arc::new(turns),
            planner: Arc::new(planner),
        })
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The same service, for what runs on its threads.
    fn share(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
            threads: self.threads.clone(),
            runtime: None,
            turns: Arc::clone(&self.turns),
            planner: Arc::clone(&self.planner),
        }
    }

    /// Asks a small question for nobody, so that the first one of somebody does not wait for what is only done then: code comes from
    /// disk, tables of functions are made. It may fail, or take too long: that is no reason not to start.
    pub(crate) async fn warm_up(&self) {
        let all = Access::unrestricted();
        let asked = timeout(WARM_UP, self.collect(SqlRequest::new(SMALL_QUESTION, &all))).await;
        if let Ok(Err(error)) = asked {
            tracing::warn!(%error, "the archive cannot be read");
        }
    }

    /// Does work on the threads of queries; who no longer waits for it stops it.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let task = AbortOnDropHandle::new(self.threads.spawn(work));
        task.await
            .map_err(|_| ApiError::internal("the query failed unexpectedly; the server's log says more"))?
    }

    /// Plans and starts a query. The answer's schema is known when this returns; rows follow in the stream.
    ///
    /// # Errors
    /// Anything that is not one readable query; errors while running come at the end of the stream.
    pub(crate) async fn sql(&self, request: SqlRequest) -> Result<ResultStream> {
        // The rollup that this feeds has its turn already.
        let turn = if request.feeds_rollup { None } else { Some(self.turns.take(&request.access).await?) };
        let settings = &self.engine.settings().query;
        let rows_max = if request.feeds_rollup { u64::MAX } else { settings.max_rows };
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        let (schema_sender, schema) = tokio::sync::oneshot::channel();
        let (planner, service) = (Arc::clone(&self.planner), self.share());
        let mut clock = self.allowance(&request);
        let (limit, feeds_rollup) = (clock.limit, request.feeds_rollup);
        let given_up = GivenUp::default();
        let wanted = Arc::clone(&given_up);
        let started = Instant::now();
        let end = Arc::new(End::default());
        let at_end = Arc::clone(&end);
        let task = self.threads.spawn(async move {
            let _turn = turn;
            let planned = clock.spend(planner.start(request, service, wanted)).await;
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
                    Ok(None) => {
                        at_end.set(Reached::Complete);
                        break;
                    }
                    Ok(Some(Ok(batch))) if feeds_rollup => Ok(batch),
                    Ok(Some(Ok(batch))) => Ok(without_slack(batch)),
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
                match timeout(READER_WAIT, sender.reserve()).await {
                    Ok(Ok(place)) => place.send(batch),
                    // A reader that is gone.
                    Ok(Err(_)) => break,
                    Err(_) => {
                        metrics::counter!("wattlake_queries_unread_total").increment(1);
                        at_end.set(Reached::Unread);
                        break;
                    }
                }
                if is_error {
                    at_end.set(Reached::Complete);
                    break;
                }
            }
            metrics::histogram!("wattlake_query_seconds").record(started.elapsed());
            drop(context);
        });
        // From here on it stops when it is not wanted any more.
        let mut rows = ResultStream::new(Arc::new(Schema::empty()), receiver, task, end, given_up, limit);
        let schema = timeout(limit + STEP, schema).await.map_err(|_| too_long(limit))?;
        let schema = schema.map_err(|_| ApiError::internal("the query failed while it was planned"))?;
        rows.set_schema(schema?);
        Ok(rows)
    }

    /// Plans a query without running it and tells what the plan says.
    ///
    /// # Errors
    /// As [`QueryService::sql`].
    pub(crate) async fn describe<T: Send + 'static>(
        &self,
        request: SqlRequest,
        tell: impl FnOnce(&LogicalPlan) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let access = request.access.clone();
        let (planner, service) = (Arc::clone(&self.planner), self.share());
        let mut clock = self.allowance(&request);
        let limit = clock.limit;
        let work = Box::pin(async move {
            let (plan, _context) = clock.spend(planner.plan(request, service, GivenUp::default())).await??;
            tell(&plan)
        });
        let described = self.run_in_turn(&access, work);
        timeout(limit + QUEUE_WAIT + STEP, described).await.map_err(|_| too_long(limit))?
    }

    /// Parses the text of a client of the Postgres protocol.
    ///
    /// # Errors
    /// Where it is not SQL, or too large.
    pub(crate) async fn parse_postgres(&self, text: String) -> Result<Vec<ast::Statement>> {
        let planner = Arc::clone(&self.planner);
        let limit = self.engine.settings().query.timeout.0;
        let parsed = self.run(async move { planner.sessions.parse_postgres(&text) });
        timeout(limit, parsed).await.map_err(|_| too_long(limit))?
    }

    /// As [`QueryService::run`], when a token has its turn; without one after a while the answer is 429.
    pub(crate) async fn run_in_turn<T: Send + 'static>(
        &self,
        access: &Access,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let turn = self.turns.take(access).await?;
        self.run(async move {
            let _turn = turn;
            work.await
        })
        .await
    }

    fn allowance(&self, request: &SqlRequest) -> Allowance {
        let limit = self.engine.settings().query.timeout.0;
        Allowance::new(request.timeout.map_or(limit, |less| less.min(limit)))
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
        outcome.map_err(|_| too_long(self.limit))
    }
}

#[async_trait]
impl Rollups for QueryService {
    async fn rollup(&self, request: RollupRequest, view: ReadView, access: Access) -> Result<RecordBatch> {
        rollup_of(self, &request, &view, &access).await
    }
}

impl Planner {
    async fn plan(
        &self,
        request: SqlRequest,
        service: QueryService,
        given_up: GivenUp,
    ) -> Result<(LogicalPlan, SessionContext)> {
        let statement = match request.question {
            Question::Text(text) => parse_query(&text)?,
            Question::Parsed(statement) if only_reads(&statement) => {
                Statement::Statement(Box::new(Arc::unwrap_or_clone(statement)))
            }
            Question::Parsed(_) => return Err(ApiError::invalid("only queries are allowed")),
        };
        let view = match (request.view, request.as_of) {
            (Some(view), _) => view,
            (None, Some(at)) => self.engine.read_view_at(at).await?,
            (None, None) => self.engine.read_view(),
        };
        let settings = self.engine.settings();
        let environment = RuntimeEnv {
            memory_pool: Arc::new(QueryMemory::new(
                settings.query.memory.as_usize(),
                Arc::clone(&self.memory),
                given_up,
            )),
            disk_manager: Arc::clone(&self.shared.disk_manager),
            cache_manager: Arc::clone(&self.shared.cache_manager),
            object_store_registry: Arc::clone(&self.shared.object_store_registry),
        };
        let (fleet, zone) = (self.engine.catalog().fleet(), &settings.time_zone.0);
        let tables = Arc::clone(&self.fleet_tables);
        let schema = WattlakeSchema::new(view, fleet, tables, request.access, zone, Arc::new(service));
        let mut context = self.sessions.open(schema, environment, request.feeds_rollup)?;
        let mut plan = context.state().statement_to_plan(statement).await?;
        let readable =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        readable.verify_plan(&plan)?;
        if !request.params.is_empty() {
            plan = plan.with_param_values(request.params)?;
        }
        if keeps_groups(&plan)? {
            context = Sessions::in_one_stream(&context);
        }
        Ok((plan, context))
    }

    async fn start(
        &self,
        request: SqlRequest,
        service: QueryService,
        given_up: GivenUp,
    ) -> Result<(datafusion::execution::SendableRecordBatchStream, SessionContext)> {
        let (plan, context) = self.plan(request, service, given_up).await?;
        let mut state = context.state();
        let plan = state.optimize(&plan)?;
        if reads_little(&plan)? {
            state.config_mut().options_mut().execution.target_partitions = 1;
        }
        let plan = state.query_planner().create_physical_plan(&plan, &state).await?;
        Ok((execute_stream(plan, state.task_ctx())?, context))
    }
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

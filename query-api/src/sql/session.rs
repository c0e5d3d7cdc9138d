//! Sessions: what all queries share is made once, and each query adds its own tables and memory.

use std::sync::Arc;

use datafusion::{
    catalog::{CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList},
    error::{DataFusionError, Result},
    execution::{FunctionRegistry, SessionState, SessionStateBuilder, runtime_env::RuntimeEnv},
    prelude::{SessionConfig, SessionContext},
    sql::sqlparser::ast::Statement,
};

use super::{
    KeyOrder, WattlakeSchema, bounded, functions,
    guard::{self, CATALOG, SCHEMA},
    information_schema::InformationSchema,
    measurements::OneStream,
    merge_runs::MergeRuns,
    postgres::Compatibility,
    totals::UseTotals,
};
use crate::error::{ApiError, Result as ApiResult};

const BATCH_ROWS: usize = 8192;

/// Makes the session of each query.
pub(crate) struct Sessions {
    /// Functions, rules and settings.
    template: SessionState,
    postgres: Compatibility,
}

impl Sessions {
    pub(crate) fn new() -> Result<Self> {
        let context = SessionContext::new_with_state(
            SessionStateBuilder::new()
                .with_config(config())
                .with_default_features()
                .with_physical_optimizer_rule(Arc::new(MergeRuns))
                .build(),
        );
        functions::register(&context);
        context.add_optimizer_rule(Arc::new(UseTotals));
        let postgres = Compatibility::install(&context)?;
        bounded::replace_unbounded(&context)?;
        Ok(Self { template: context.state(), postgres })
    }

    /// The session of one query; `in_key_order` as of [`KeyOrder`].
    pub(crate) fn open(
        &self,
        schema: WattlakeSchema,
        runtime: RuntimeEnv,
        in_key_order: bool,
    ) -> Result<SessionContext> {
        let mut config = self.template.config().clone();
        if in_key_order {
            config = config.with_extension(Arc::new(KeyOrder));
        }
        let site_zone = schema.site_zone();
        let catalog = Arc::new(MemoryCatalogProvider::new());
        catalog.register_schema(SCHEMA, Arc::new(schema))?;
        catalog.register_schema("pg_catalog", self.postgres.catalog())?;
        let catalogs: Arc<dyn CatalogProviderList> = Arc::new(MemoryCatalogProviderList::new());
        catalogs.register_catalog(CATALOG.to_owned(), Arc::clone(&catalog) as _);
        catalog.register_schema("information_schema", Arc::new(InformationSchema::new(&catalogs)))?;
        let mut state = SessionStateBuilder::new_from_existing(self.template.clone())
            .with_config(config)
            .with_runtime_env(Arc::new(runtime))
            .with_catalog_list(catalogs)
            .build();
        state.register_udf(Arc::new(site_zone))?;
        Ok(SessionContext::new_with_state(state))
    }

    /// The same, for plans that keep the readings of a group until it is complete: where groups are those of entities, they come one
    /// after the other in one stream, and the readings of one are held at a time.
    pub(crate) fn in_one_stream(context: &SessionContext) -> SessionContext {
        let state = context.state();
        let config = state.config().clone().with_target_partitions(1).with_extension(Arc::new(OneStream));
        let state = SessionStateBuilder::new_from_existing(state).with_config(config).build();
        SessionContext::new_with_state(state)
    }

    /// Parses what a client of the Postgres protocol sent: any number of statements of any kind, rewritten where their
    /// catalog queries use what the planner does not know.
    pub(crate) fn parse_postgres(&self, text: &str) -> ApiResult<Vec<Statement>> {
        guard::check_text(text)?;
        let syntax = |error| {
            ApiError::invalid(format!("SQL syntax: {}", DataFusionError::from(error).strip_backtrace()))
        };
        self.postgres.parse(text).map_err(syntax)
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

fn config() -> SessionConfig {
    SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        // Ours is one of the catalog's schemas.
        .with_information_schema(false)
        .with_batch_size(BATCH_ROWS)
        .with_target_partitions(std::thread::available_parallelism().map_or(2, usize::from))
        .set_bool("datafusion.execution.parquet.pushdown_filters", true)
        .set_bool("datafusion.execution.parquet.reorder_filters", true)
        // Not counted in the pool of a query, and by default 100 MB for each file that is being read.
        .set_usize("datafusion.execution.parquet.max_predicate_cache_size", 16 << 20)
        // It refuses plans of sound queries, in which one side has found out that a column is never null and the other has not.
        .set_bool("datafusion.execution.skip_physical_aggregate_schema_check", true)
        .set_str("datafusion.sql_parser.dialect", "postgres")
        .set_str("datafusion.execution.time_zone", "UTC")
        // Readings come in order: to merge them costs less than to sort them again, and far less memory.
        .set_bool("datafusion.optimizer.prefer_existing_sort", true)
        // Our memory limit is smaller than what a sort keeps back for its merge by default.
        .set_usize("datafusion.execution.sort_spill_reservation_bytes", 1 << 20)
        .set_bool("datafusion.execution.enable_recursive_ctes", false)
}

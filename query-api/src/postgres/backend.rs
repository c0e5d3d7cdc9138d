//! What the protocol needs of the rest of the server.
//!
//! It is behind a trait object: so it is checked once that all of it may go from thread to thread, and not again for each
//! of the generic functions that answer messages, which would take the compiler a minute.

use std::{any::Any, sync::Arc, time::Duration};

use async_trait::async_trait;
use datafusion::{common::ScalarValue, logical_expr::LogicalPlan, sql::sqlparser::ast::Statement};
use wattlake_catalog::{Access, Scope};
use wattlake_engine::ReadView;

use crate::{
    access::Gate,
    error::Result,
    query::{QueryService, ResultStream, SqlRequest},
};

/// A state of the archive.
pub(super) type View = Arc<dyn Any + Send + Sync>;

/// Takes from a plan what is wanted of it.
pub(super) type Tell = Box<dyn FnOnce(&LogicalPlan) -> Result<()> + Send>;

/// A query of one connection.
pub(super) struct Ask {
    pub statement: Arc<Statement>,
    pub params: Vec<ScalarValue>,
    pub access: Access,
    pub timeout: Option<Duration>,
    /// `None`: the newest state.
    pub view: Option<View>,
}

impl Ask {
    fn into_request(self) -> SqlRequest {
        let view = self.view.and_then(|view| view.downcast_ref::<ReadView>().cloned());
        SqlRequest {
            params: self.params,
            timeout: self.timeout,
            view,
            ..SqlRequest::parsed(self.statement, &self.access)
        }
    }
}

#[async_trait]
pub(super) trait Backend: Send + Sync {
    /// What a token may do here.
    async fn admit(&self, token: &str) -> Result<Access>;

    async fn parse(&self, text: String) -> Result<Vec<Statement>>;

    /// Plans a query, to tell what `tell` does of the plan.
    async fn describe(&self, ask: Ask, tell: Tell) -> Result<()>;

    async fn rows(&self, ask: Ask) -> Result<ResultStream>;

    fn view(&self) -> View;
}

/// The server itself.
pub(super) struct Here {
    pub queries: Arc<QueryService>,
    pub gate: Gate,
}

#[async_trait]
impl Backend for Here {
    async fn admit(&self, token: &str) -> Result<Access> {
        self.gate.admit(Some(token), Scope::Read).await
    }

    async fn parse(&self, text: String) -> Result<Vec<Statement>> {
        self.queries.parse_postgres(text).await
    }

    async fn describe(&self, ask: Ask, tell: Tell) -> Result<()> {
        self.queries.describe(ask.into_request(), tell).await
    }

    async fn rows(&self, ask: Ask) -> Result<ResultStream> {
        self.queries.sql(ask.into_request()).await
    }

    fn view(&self) -> View {
        Arc::new(self.queries.engine().read_view())
    }
}

//! `GET /api/rollup`.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use futures::stream;
use wattlake_catalog::Access;

use super::{
    App,
    encode::{OutputFormat, respond},
    reply::read_query,
};
use crate::{
    error::Result,
    rollup::{self, RollupParams, RollupRequest},
};

pub(super) async fn rollup(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response> {
    let params: RollupParams = read_query(query.as_deref(), &["siteId", "meterId", "entityId"])?;
    let format = OutputFormat::negotiate(params.format.as_deref(), &headers)?;
    let request = RollupRequest::new(&params, &app.zone(), app.now())?;
    let queries = Arc::clone(&app.queries);
    let work = async move { rollup::rollup(&queries, &request, &access).await };
    let batch = app.queries.run(work).await?;
    respond(format, batch.schema(), stream::iter([Ok(batch)])).await
}

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
    // An answer that ends in the past is the same at any time.
    let is_timeless = request.to <= app.now() && params.is_absolute();
    let tag = is_timeless.then(|| app.tagger.tag(&app, &access, ("rollup", &query, format)));
    if let Some(unchanged) = tag.as_ref().and_then(|tag| tag.unchanged(&headers)) {
        return Ok(unchanged);
    }
    let queries = Arc::clone(&app.queries);
    let of_whom = access.clone();
    let work = async move { rollup::rollup(&queries, &request, &access).await };
    let batch = app.queries.run_in_turn(&of_whom, work).await?;
    let response = respond(format, batch.schema(), stream::iter([Ok(batch)])).await?;
    Ok(match tag {
        Some(tag) => tag.on(response),
        None => response,
    })
}

//! `GET /api/balance`: the energy balance of sites.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use futures::stream;
use serde::Deserialize;
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

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Params {
    #[serde(default)]
    site_id: Vec<String>,
    bucket: Option<String>,
    from: Option<String>,
    to: Option<String>,
    tz: Option<String>,
    quality: Option<String>,
    as_of: Option<String>,
    format: Option<String>,
}

pub(super) async fn balance(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response> {
    let params: Params = read_query(query.as_deref(), &["siteId"])?;
    let format = OutputFormat::negotiate(params.format.as_deref(), &headers)?;
    let of_energy = RollupParams {
        site_id: params.site_id,
        metric: Some("energy".to_owned()),
        bucket: params.bucket,
        from: params.from,
        to: params.to,
        tz: params.tz,
        quality: params.quality,
        as_of: params.as_of,
        ..RollupParams::default()
    };
    let request = RollupRequest::new(&of_energy, &app.zone(), app.now())?;
    let queries = Arc::clone(&app.queries);
    let of_whom = access.clone();
    let work = async move { rollup::balance(&queries, &request, &access).await };
    let batch = app.queries.run_in_turn(&of_whom, work).await?;
    respond(format, batch.schema(), stream::iter([Ok(batch)])).await
}

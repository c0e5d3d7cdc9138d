//! `POST /api/import`: a part of a bulk import, as `wattlake import` sends it to a running server.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;
use wattlake_catalog::Access;
use wattlake_engine::{IngestRequest, TableMapping, TimePrecision};

use super::{
    App,
    measurements::read_body,
    reply::{json_response, read_flag, read_query},
};
use crate::error::{ApiError, Result};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Params {
    format: String,
    site: Option<String>,
    /// JSON with the fields of a mapping file.
    mapping: Option<String>,
    precision: Option<String>,
    dry_run: Option<String>,
}

pub(super) async fn import(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let params: Params = read_query(query.as_deref(), &[])?;
    let mapping = params.mapping.as_deref().map(|text| {
        let mapping: TableMapping =
            serde_json::from_str(text).map_err(|error| ApiError::invalid(format!("mapping: {error}")))?;
        mapping.check()?;
        Ok::<_, ApiError>(Arc::new(mapping))
    });
    let (body, _held) = read_body(&app, &headers, body).await?;
    let report = app
        .ingest
        .ingest(IngestRequest {
            format: params.format.parse()?,
            body,
            precision: params.precision.as_deref().map(str::parse::<TimePrecision>).transpose()?,
            is_atomic: false,
            site: params.site.unwrap_or_else(|| "default".to_owned()),
            mapping: mapping.transpose()?,
            allowed_sites: access.sites,
            is_dry_run: read_flag("dryRun", params.dry_run.as_deref())?,
        })
        .await?;
    Ok(json_response(&report))
}

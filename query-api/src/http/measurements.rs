//! `/api/measurements`: writing readings in every format, and reading raw rows.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use arrow::{
    array::{Array, AsArray, RecordBatch, StringArray},
    datatypes::{DataType, Float64Type, TimestampMicrosecondType},
};
use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use datafusion::common::ScalarValue;
use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use wattlake_catalog::{Access, EntityId};
use wattlake_engine::{BodyFormat, ContentEncoding, IngestRequest, RowFilter, TimePrecision, decompress};

use super::{
    App,
    listing::{add_cursor, read_limit},
    reply::{json_response, read_flag, read_query},
    resource::with_sources,
};
use crate::{
    error::{ApiError, Kind, Result},
    query::SqlRequest,
    sql::measurement_id,
    time::parse_instant,
};

/// A connection that sends nothing of its body for this long is given up.
const BODY_IDLE: std::time::Duration = std::time::Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteParams {
    precision: Option<String>,
    atomic: Option<String>,
}

/// `POST /api/measurements`.
pub(super) async fn write(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let params: WriteParams = read_query(query.as_deref(), &[])?;
    let is_atomic = read_flag("atomic", params.atomic.as_deref())?;
    let precision = params.precision.as_deref().map(str::parse::<TimePrecision>).transpose()?;
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = BodyFormat::from_content_type(content_type)?;
    let (body, _held) = read_body(&app, &headers, body).await?;
    let request = IngestRequest {
        format,
        body: body.into(),
        precision,
        is_atomic,
        site: "default".to_owned(),
        mapping: None,
        allowed_sites: access.sites,
        is_dry_run: false,
        errors_max: wattlake_engine::ERRORS_REPORTED_MAX,
    };
    let report = app.ingest.ingest(request).await?;
    let mut response = json_response(&report);
    if is_atomic && report.rejected > 0 {
        let details = report.errors.iter().map(|error| json!(error)).collect();
        let message = format!("{} rows were refused, so none was stored (atomic=true)", report.rejected);
        return Err(ApiError { kind: Kind::Unprocessable, message, details });
    }
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}

/// Bytes of a body that count against `ingest.max_inflight_bytes` until this is dropped.
pub(super) struct Held<'a> {
    total: &'a AtomicUsize,
    bytes: usize,
}

impl Held<'_> {
    fn add(&mut self, bytes: usize, max: usize) -> Result<()> {
        self.bytes += bytes;
        if self.total.fetch_add(bytes, Ordering::AcqRel) + bytes > max {
            metrics::counter!("wattlake_writes_refused_total", "reason" => "inflight").increment(1);
            let message = "too many request bodies at once (ingest.max_inflight_bytes); try again";
            return Err(ApiError::new(Kind::Overloaded, message));
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Reads and decompresses a body, within the limits.
pub(super) async fn read_body<'a>(
    app: &'a App,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, Held<'a>)> {
    let ingest = &app.engine.settings().ingest;
    let (max, max_inflight) = (ingest.max_body_bytes.as_usize(), ingest.max_inflight_bytes.as_usize());
    let too_large = || {
        let message = format!(
            "the body exceeds ingest.max_body_bytes = {}; send smaller batches",
            ingest.max_body_bytes
        );
        ApiError::new(Kind::TooLarge, message)
    };
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"));
    let encoding: ContentEncoding = encoding.unwrap_or_default().parse()?;
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > max) {
        return Err(too_large());
    }
    let mut held = Held { total: &app.inflight_bytes, bytes: 0 };
    let mut stream = body.into_data_stream();
    let mut collected = Vec::with_capacity(announced.unwrap_or(0));
    loop {
        let chunk = tokio::time::timeout(BODY_IDLE, stream.next()).await;
        let chunk = chunk.map_err(|_| ApiError::invalid("the body stopped arriving"))?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| ApiError::invalid(format!("the body broke off: {error}")))?;
        if collected.len() + chunk.len() > max {
            return Err(too_large());
        }
        held.add(chunk.len(), max_inflight)?;
        collected.extend_from_slice(&chunk);
    }
    let body = Bytes::from(collected);
    if encoding == ContentEncoding::Identity {
        return Ok((body, held));
    }
    let decoded = tokio::task::spawn_blocking(move || decompress(body, encoding, max)).await;
    let decoded =
        decoded.map_err(|_| ApiError::invalid("the body is damaged: its decompression failed"))??;
    held.add(decoded.len(), max_inflight)?;
    Ok((decoded, held))
}

/// Refuses to delete entities that have readings.
pub(super) async fn refuse_readings(app: &App, entities: &[EntityId]) -> Result<()> {
    for some in entities.chunks(1000) {
        let ids: Vec<_> = some.iter().map(|id| format!("'{id}'")).collect();
        let query =
            format!("SELECT entity_id FROM measurements WHERE entity_id IN ({}) LIMIT 1", ids.join(", "));
        let (_, batches) = app.queries.collect(SqlRequest::new(query, &Access::unrestricted())).await?;
        if let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) {
            let id = text(batch, 0)?.value(0).to_owned();
            let message =
                format!("entity {id} still has readings; use ?cascade=true to delete it all the same");
            return Err(ApiError::new(Kind::Conflict, message));
        }
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ReadParams {
    entity_id: Option<String>,
    metric: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /api/measurements`: raw rows by time; the next cursor is in the header `X-Next-Cursor`.
pub(super) async fn read(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let params: ReadParams = read_query(query.as_deref(), &[])?;
    let limit = read_limit(params.limit.as_deref())?;
    let mut conditions = Vec::new();
    let mut values = Vec::new();
    let mut add = |condition: &str, parameters: Vec<ScalarValue>| {
        let mut condition = condition.to_owned();
        for value in parameters {
            values.push(value);
            condition = condition.replacen('?', &format!("${}", values.len()), 1);
        }
        conditions.push(condition);
    };
    if let Some(id) = &params.entity_id {
        add("entity_id = ?", vec![id.parse::<EntityId>()?.to_string().into()]);
    }
    if let Some(metric) = &params.metric {
        add("metric = ?", vec![metric.as_str().into()]);
    }
    let time = |micros: i64| ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()));
    for (name, text, condition) in
        [("from", &params.from, "timestamp >= ?"), ("to", &params.to, "timestamp < ?")]
    {
        if let Some(text) = text {
            let at = parse_instant(name, text, &app.zone(), app.now())?;
            add(condition, vec![time(at.as_microsecond())]);
        }
    }
    // The cursor is the key of the last row: its time, entity and metric.
    if let Some(cursor) = &params.cursor {
        let invalid = || ApiError::invalid(format!("cursor: `{cursor}` is not one of ours"));
        let (micros, rest) = cursor.split_once('/').ok_or_else(invalid)?;
        let (entity, metric) = rest.split_once('/').ok_or_else(invalid)?;
        let micros: i64 = micros.parse().map_err(|_| invalid())?;
        add("timestamp >= ?", vec![time(micros)]);
        add(
            "(timestamp > ? OR entity_id > ? OR (entity_id = ? AND metric > ?))",
            vec![time(micros), entity.into(), entity.into(), metric.into()],
        );
    }
    let condition = conditions.join(" AND ");
    let filter = if condition.is_empty() { String::new() } else { format!("WHERE {condition}") };
    let mut request = SqlRequest::new(
        format!(
            "SELECT entity_id, entity_type, timestamp, metric, value, unit, quality, metadata, created_at \
             FROM measurements {filter} ORDER BY timestamp, entity_id, metric LIMIT {}",
            limit + 1
        ),
        &access,
    );
    request.params = values;
    let (_, batches) = app.queries.collect(request).await?;
    let mut rows = Vec::new();
    for batch in &batches {
        rows.extend(to_rows(batch)?);
    }
    let has_more = rows.len() > limit;
    rows.truncate(limit);
    let cursor = rows.last().map(|(cursor, _)| cursor.clone());
    let values: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    let mut response = json_response(&values);
    if let Some(cursor) = cursor.filter(|_| has_more) {
        add_cursor(&mut response, &cursor);
    }
    Ok(response)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct RemoveParams {
    #[serde(default)]
    entity_id: Vec<String>,
    metric: Option<String>,
    from: Option<String>,
    to: Option<String>,
}

/// `DELETE /api/measurements`: the rows that all parameters pick, durably; answers how many there were.
pub(super) async fn remove(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let params: RemoveParams = read_query(query.as_deref(), &["entityId"])?;
    if params.entity_id.is_empty() && params.metric.is_none() {
        return Err(ApiError::invalid("entityId or metric is required: say which rows are to be deleted"));
    }
    let fleet = app.engine.catalog().fleet();
    let mut entities = BTreeSet::new();
    for text in &params.entity_id {
        let id: EntityId = text.parse()?;
        let site = fleet.site_of(id);
        // Rows of entities that the catalog no longer knows can be deleted, too, by who may write everywhere.
        if !access.sites.is_empty() && !site.is_some_and(|site| access.allows_site(site.id)) {
            return Err(ApiError::not_found(format!("no entity {id}")));
        }
        entities.insert(id);
    }
    if params.entity_id.is_empty() && !access.sites.is_empty() {
        let meters = access.sites.iter().flat_map(|site| fleet.site_meters(*site)).collect();
        entities.extend(with_sources(&fleet, meters));
    }
    let is_everywhere = params.entity_id.is_empty() && access.sites.is_empty();
    let time = |name: &str, text: &Option<String>, default: i64| -> Result<i64> {
        let Some(text) = text else { return Ok(default) };
        Ok(parse_instant(name, text, &app.zone(), app.now())?.as_microsecond())
    };
    let filter = RowFilter {
        entities: (!is_everywhere).then_some(entities),
        metric: params.metric,
        from: time("from", &params.from, i64::MIN)?,
        to: time("to", &params.to, i64::MAX)?,
    };
    let deleted = app.engine.delete_rows(filter).await?;
    Ok(json_response(&json!({ "deleted": deleted })))
}

pub(super) fn text(batch: &RecordBatch, column: usize) -> Result<StringArray> {
    let array = arrow::compute::cast(batch.column(column), &DataType::Utf8)
        .map_err(|error| ApiError::internal(format!("column {column} is not text: {error}")))?;
    Ok(array.as_string::<i32>().clone())
}

/// Each row with its cursor.
fn to_rows(batch: &RecordBatch) -> Result<Vec<(String, Value)>> {
    let (entity, kind, metric) = (text(batch, 0)?, text(batch, 1)?, text(batch, 3)?);
    let (unit, quality, metadata) = (text(batch, 5)?, text(batch, 6)?, text(batch, 7)?);
    let time = batch.column(2).as_primitive::<TimestampMicrosecondType>();
    let value = batch.column(4).as_primitive::<Float64Type>();
    let created = batch.column(8).as_primitive::<TimestampMicrosecondType>();
    let instant = |micros: i64| Timestamp::from_microsecond(micros).unwrap_or_default();
    Ok((0..batch.num_rows())
        .map(|i| {
            let micros = time.value(i);
            let metadata: Value = match metadata.is_null(i) {
                true => Value::Null,
                false => serde_json::from_str(metadata.value(i)).unwrap_or(Value::Null),
            };
            let row = json!({
                "id": measurement_id(entity.value(i), metric.value(i), micros),
                "entityId": entity.value(i),
                "entityType": kind.value(i),
                "timestamp": instant(micros),
                "metric": metric.value(i),
                "value": value.value(i),
                "unit": unit.value(i),
                "quality": quality.value(i),
                "metadata": metadata,
                "createdAt": instant(created.value(i)),
            });
            (format!("{micros}/{}/{}", entity.value(i), metric.value(i)), row)
        })
        .collect())
}

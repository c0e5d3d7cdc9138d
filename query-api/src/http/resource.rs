//! What sites, meters and energy sources have in common: creating, showing, changing and removing one of them.

use std::{fmt::Display, str::FromStr};

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use wattlake_catalog::{Access, EntityId, Fleet};
use wattlake_engine::RowFilter;

use super::{
    App,
    measurements::refuse_readings,
    reply::{created, json_response, read_flag, read_json, read_query, read_value},
};
use crate::error::{ApiError, Result};

/// A kind of thing in the catalog.
pub(super) trait Resource: 'static {
    type Id: Copy + Display + FromStr<Err = wattlake_catalog::Error> + Send;
    type Stored: Serialize + Send;
    /// What a client may say of it.
    type Draft: DeserializeOwned + Serialize + for<'a> From<&'a Self::Stored> + Send;

    /// One that the bearer may see.
    fn find(app: &App, access: &Access, id: Self::Id) -> Result<Self::Stored>;

    /// Whether the bearer may put it where the draft says.
    fn check_place(app: &App, access: &Access, draft: &Self::Draft) -> Result<()>;

    fn create(app: &App, draft: Self::Draft) -> impl Future<Output = Result<Self::Stored>> + Send;

    fn update(
        app: &App,
        id: Self::Id,
        draft: Self::Draft,
    ) -> impl Future<Output = Result<Self::Stored>> + Send;

    fn delete(app: &App, id: Self::Id, cascade: bool) -> impl Future<Output = Result<()>> + Send;

    /// The entities that go with it.
    fn entities(fleet: &Fleet, id: Self::Id) -> Vec<EntityId>;
}

/// Meters with their sources.
pub(super) fn with_sources(fleet: &Fleet, meters: Vec<EntityId>) -> Vec<EntityId> {
    meters.into_iter().flat_map(|meter| [meter].into_iter().chain(fleet.sources_of(meter).to_vec())).collect()
}

/// `POST`.
pub(super) async fn create<R: Resource>(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    body: Bytes,
) -> Result<Response> {
    let draft: R::Draft = read_json(&body)?;
    R::check_place(&app, &access, &draft)?;
    Ok(created(&R::create(&app, draft).await?))
}

/// `GET` of one.
pub(super) async fn show<R: Resource>(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
) -> Result<Response> {
    Ok(json_response(&R::find(&app, &access, id.parse()?)?))
}

/// `PATCH`: the fields of the body replace those stored, `null` clears one.
pub(super) async fn change<R: Resource>(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response> {
    let id: R::Id = id.parse()?;
    let stored = R::find(&app, &access, id)?;
    let patch: Value = read_json(&body)?;
    if patch.get("id").is_some_and(|patched| patched.as_str() != Some(&id.to_string())) {
        return Err(ApiError::invalid("id: cannot be changed"));
    }
    let mut merged = serde_json::to_value(R::Draft::from(&stored))
        .map_err(|error| ApiError::internal(format!("{id} cannot be written as JSON: {error}")))?;
    merge_patch(&mut merged, patch);
    let draft: R::Draft = read_value(merged)?;
    R::check_place(&app, &access, &draft)?;
    Ok(json_response(&R::update(&app, id, draft).await?))
}

/// Lays the fields of a patch over what is stored, as JSON merge patch (RFC 7396) does.
fn merge_patch(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            if let Value::Object(target) = target {
                for (key, value) in patch {
                    if value.is_null() {
                        target.remove(&key);
                    } else {
                        merge_patch(target.entry(key).or_insert(Value::Null), value);
                    }
                }
            }
        }
        other => *target = other,
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveParams {
    cascade: Option<String>,
}

/// `DELETE`: 409 while it still has children or readings, unless `?cascade=true`.
pub(super) async fn remove<R: Resource>(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let id: R::Id = id.parse()?;
    let params: RemoveParams = read_query(query.as_deref(), &[])?;
    let cascade = read_flag("cascade", params.cascade.as_deref())?;
    R::find(&app, &access, id)?;
    let entities = R::entities(&app.engine.catalog().fleet(), id);
    if !cascade {
        refuse_readings(&app, &entities).await?;
    }
    R::delete(&app, id, cascade).await?;
    if cascade && !entities.is_empty() {
        let entities = Some(entities.into_iter().collect());
        app.engine.delete_rows(RowFilter { entities, metric: None, from: i64::MIN, to: i64::MAX }).await?;
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

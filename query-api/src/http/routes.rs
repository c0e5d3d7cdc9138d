//! The table of routes: method, path, who may call it, handler.

use axum::{
    Router,
    extract::Request,
    http::Method,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, patch, post},
};
use tower_http::compression::{
    CompressionLayer,
    predicate::{NotForContentType, Predicate, SizeAbove},
};
use wattlake_catalog::Scope::{Admin, Read, Write};

use super::{
    App,
    auth::{Rule, Rule::Needs, Rule::Open, authorize},
    balance, discovery,
    energy_sources::{self, EnergySources},
    hierarchy, import, latest, line_protocol, maintenance, measurements,
    meters::{self, Meters},
    onboarding, openapi, operations, polling, resource, rollups,
    sites::{self, Sites},
    snapshots, sql,
};
use crate::error::ApiError;

/// Shorter answers are not worth compressing.
const COMPRESSED_MIN: u16 = 860;

/// Parquet is compressed already.
fn is_compressible() -> impl Predicate {
    SizeAbove::new(COMPRESSED_MIN).and(NotForContentType::const_new("application/vnd.apache.parquet"))
}

/// One route; there is no other way to add one, so none is without a rule.
pub(super) struct Route {
    pub path: &'static str,
    pub rule: Rule,
    pub handler: MethodRouter<App>,
}

const fn route(path: &'static str, rule: Rule, handler: MethodRouter<App>) -> Route {
    Route { path, rule, handler }
}

pub(super) fn routes() -> Vec<Route> {
    vec![
        route("/api/sites", Needs(Read), get(sites::list)),
        route("/api/sites", Needs(Admin), post(resource::create::<Sites>)),
        route("/api/sites/{id}", Needs(Read), get(resource::show::<Sites>)),
        route("/api/sites/{id}", Needs(Admin), patch(resource::change::<Sites>)),
        route("/api/sites/{id}", Needs(Admin), delete(resource::remove::<Sites>)),
        route("/api/portfolios", Needs(Read), get(sites::list)),
        route("/api/meters", Needs(Read), get(meters::list)),
        route("/api/meters", Needs(Admin), post(resource::create::<Meters>)),
        route("/api/meters/{id}", Needs(Read), get(resource::show::<Meters>)),
        route("/api/meters/{id}", Needs(Admin), patch(resource::change::<Meters>)),
        route("/api/meters/{id}", Needs(Admin), delete(resource::remove::<Meters>)),
        route("/api/energy-sources", Needs(Read), get(energy_sources::list)),
        route("/api/energy-sources", Needs(Admin), post(resource::create::<EnergySources>)),
        route("/api/energy-sources/{id}", Needs(Read), get(resource::show::<EnergySources>)),
        route("/api/energy-sources/{id}", Needs(Admin), patch(resource::change::<EnergySources>)),
        route("/api/energy-sources/{id}", Needs(Admin), delete(resource::remove::<EnergySources>)),
        route("/api/energy-sources/{id}/test", Needs(Admin), post(polling::test)),
        route("/api/energy-sources/{id}/poll", Needs(Admin), post(polling::poll)),
        route("/api/energy-sources/{id}/backfill", Needs(Admin), post(polling::backfill)),
        route("/api/energy-sources/{id}/dry-run", Needs(Admin), post(polling::dry_run)),
        route("/api/energy-sources/{id}/replay", Needs(Admin), post(polling::replay)),
        route("/api/discovery", Needs(Admin), post(discovery::post)),
        route("/api/jobs", Needs(Read), get(polling::jobs)),
        route("/api/jobs/{id}", Needs(Read), get(polling::job)),
        route("/api/jobs/{id}", Needs(Admin), delete(polling::cancel)),
        route("/api/gaps", Needs(Read), get(polling::gaps)),
        route("/api/onboarding/complete", Needs(Admin), post(onboarding::complete)),
        route("/api/measurements", Needs(Write), post(measurements::write)),
        route("/api/measurements", Needs(Read), get(measurements::read)),
        route("/api/measurements", Needs(Write), delete(measurements::remove)),
        route("/api/import", Needs(Write), post(import::import)),
        route("/api/imports", Needs(Write), post(import::start)),
        route("/api/imports/undo", Needs(Admin), post(import::undo)),
        route("/api/imports/{id}", Needs(Write), post(import::add)),
        route("/api/imports/{id}", Needs(Write), delete(import::give_up)),
        route("/api/imports/{id}/finish", Needs(Write), post(import::finish)),
        route("/api/v2/write", Needs(Write), post(line_protocol::write)),
        route("/api/v3/write_lp", Needs(Write), post(line_protocol::write)),
        route("/write", Needs(Write), post(line_protocol::write)),
        route("/query", Needs(Read), get(line_protocol::query).post(line_protocol::query)),
        route("/ping", Open, get(line_protocol::ping).head(line_protocol::ping)),
        route("/health", Open, get(operations::health)),
        route("/ready", Open, get(operations::ready)),
        route("/api/openapi.json", Open, get(openapi::openapi)),
        route("/metrics", Needs(Read), get(operations::metrics)),
        route("/api/status", Needs(Read), get(operations::status)),
        route("/api/flush", Needs(Admin), post(operations::flush)),
        route("/api/compact", Needs(Admin), post(maintenance::compact)),
        route("/api/backup", Needs(Admin), post(maintenance::backup)),
        route("/api/export", Needs(Admin), post(maintenance::export)),
        route("/api/verify", Needs(Admin), post(maintenance::verify)),
        route("/api/snapshots", Needs(Admin), post(snapshots::create)),
        route("/api/snapshots", Needs(Read), get(snapshots::list)),
        route("/api/snapshots/{name}", Needs(Admin), delete(snapshots::remove)),
        route("/api/sql", Needs(Read), get(sql::get).post(sql::post)),
        route("/api/latest", Needs(Read), get(latest::latest)),
        route("/api/rollup", Needs(Read), get(rollups::rollup)),
        route("/api/balance", Needs(Read), get(balance::balance)),
        route("/api/hierarchy/{siteId}", Needs(Read), get(hierarchy::hierarchy)),
    ]
}

/// All routes with their rules.
pub(crate) fn router(app: &App) -> Router {
    let mut router = Router::new();
    for Route { path, rule, handler } in routes() {
        let state = app.clone();
        let check = middleware::from_fn(move |request: Request, next: Next| {
            authorize(state.clone(), rule, request, next)
        });
        router = router.route(path, handler.layer(check));
    }
    router
        .fallback(async |request: Request| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            ApiError::not_found(format!("no route {method} {path}")).into_response()
        })
        .method_not_allowed_fallback(async |request: Request| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let mut response = ApiError::invalid(format!("{path} does not take {method}")).into_response();
            *response.status_mut() = axum::http::StatusCode::METHOD_NOT_ALLOWED;
            response
        })
        .layer(CompressionLayer::new().compress_when(is_compressible()))
        .layer(middleware::from_fn(observe))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(|_| {
            metrics::counter!("wattlake_panics_total").increment(1);
            ApiError::internal("the request failed unexpectedly; the server's log says more").into_response()
        }))
        .with_state(app.clone())
}

/// Counts and times requests. One that changes something runs in a task of its own: a client that goes away does not
/// tear it.
async fn observe(request: Request, next: Next) -> Response {
    let started = std::time::Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    // A question ends with its client, also one in a body.
    let is_safe = matches!(method, Method::GET | Method::HEAD) || path == "/api/sql";
    let response = if is_safe {
        next.run(request).await
    } else {
        match tokio::spawn(next.run(request)).await {
            Ok(response) => response,
            Err(_) => ApiError::internal("the request failed unexpectedly; the server's log says more")
                .into_response(),
        }
    };
    let status = response.status().as_u16();
    metrics::counter!("wattlake_http_requests_total", "status" => status.to_string()).increment(1);
    metrics::histogram!("wattlake_http_request_seconds").record(started.elapsed());
    tracing::debug!(%method, path, status, elapsed_ms = started.elapsed().as_millis() as u64, "request");
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every route has a rule by construction; this one says which are the exceptions, so that a new one is noticed.
    #[test]
    fn only_liveness_is_open() {
        let open: BTreeSet<_> = routes().iter().filter(|r| r.rule == Open).map(|r| r.path).collect();
        assert_eq!(open, BTreeSet::from(["/api/openapi.json", "/health", "/ping", "/ready"]));
    }
}

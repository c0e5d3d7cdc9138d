//! The HTTP interface. Handlers only translate: they check a request, call the catalog, ingest or the query service, and
//! write the answer. One request kind, one file; every route states in [`routes`] who may call it.

mod auth;
mod balance;
mod discovery;
mod encode;
mod energy_sources;
mod etag;
mod hierarchy;
mod import;
mod latest;
mod line_protocol;
mod listing;
mod maintenance;
mod measurements;
mod meters;
mod onboarding;
mod openapi;
mod operations;
mod polling;
mod reply;
mod resource;
mod rollups;
mod routes;
mod sites;
mod snapshots;
mod sql;

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};

use jiff::{Timestamp, tz::TimeZone};
use metrics_exporter_prometheus::PrometheusHandle;
use wattlake_engine::{Engine, Ingest, Sources};

pub(crate) use auth::presented_token;
pub(crate) use discovery::{Question, discover};
pub(crate) use encode::{Encoder, OutputFormat};
pub(crate) use import::{PartReport, PartSeries};
pub(crate) use routes::router;

use crate::{access::Gate, query::QueryService};

/// What every handler works with.
#[derive(Clone)]
pub(crate) struct App {
    pub engine: Arc<Engine>,
    pub ingest: Ingest,
    pub queries: Arc<QueryService>,
    pub sources: Sources,
    pub gate: Gate,
    pub prometheus: PrometheusHandle,
    pub started: Instant,
    /// Bytes of request bodies in work.
    pub inflight_bytes: Arc<AtomicUsize>,
    pub imports: Arc<import::Imports>,
    pub tagger: etag::Tagger,
}

impl App {
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_microsecond(self.engine.clock().now_micros()).unwrap_or_default()
    }

    /// The zone of dates and local times in requests that name none.
    pub(crate) fn zone(&self) -> TimeZone {
        TimeZone::get(&self.engine.settings().time_zone.0).unwrap_or(TimeZone::UTC)
    }
}

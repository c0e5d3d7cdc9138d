//! Sources: vendor APIs are polled within their budgets, without gaps.
//!
//! A [connector](connector) knows how a vendor is asked and what an answer says. Everything else is common: [when](schedule) a source has
//! its [turn](turn), how many [calls](budget) its credential has left, which [window](cursor) comes next, what is done about a
//! [failure], where the readings [go](store), what is [missing](gaps), and how [history](backfill) is fetched.
//! What comes by itself, or is pushed by others, is [watched](watch).
//!
//! Gateways and brokers at home are [mapped](mapping) by configuration, over [HTTP](http_json) or [MQTT](mqtt). What users do is in [trials] and [jobs]; the
//! [runner] gives turns.
//!
//! Each source has turns of its own and never waits for another. Time is the engine's clock: nothing sleeps while it works, so that a
//! month of turns can be run in seconds.

mod address;
mod ask;
mod backfill;
mod budget;
mod connector;
mod cursor;
mod enphase;
mod failure;
mod gaps;
mod http;
mod http_json;
mod jobs;
pub mod jq;
mod mapping;
mod mqtt;
mod pinned;
mod raw;
mod runner;
mod schedule;
mod settings;
mod solaredge;
mod store;
mod trials;
mod turn;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, atomic::AtomicBool},
};

use jiff::{Timestamp, tz::TimeZone};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{
    sync::{Mutex as TurnMutex, Notify},
    task::JoinHandle,
};
use uuid::Uuid;
use wattlake_catalog::{EnergySource, EntityId, Fleet};

use self::{ask::Asker, failure::Class, turn::Work, watch::Watch};
pub use self::{
    connector::{FoundDevice, FoundSystem},
    jobs::{BackfillPlan, BudgetStatus, JobStatus},
    settings::{Obstacle, PROVIDERS},
    trials::{ConnectionTest, DryReading, DryRun, Replayed},
    watch::CadenceChange,
};
use crate::Engine;

const SECOND: i64 = 1_000_000;
/// The provider that is listened to.
const MQTT: &str = "mqtt";
/// What the runner itself writes into metadata.
const OWN_FIELDS: [&str; 3] = ["connectionStatus", "lastTested", "lastError"];

/// What a user sees of a source.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    pub id: EntityId,
    pub name: String,
    /// A word: `connected`, `unauthorized`, ...
    pub connection_status: &'static str,
    pub last_error: Option<String>,
    /// The last answer with readings or without.
    pub last_success: Option<Timestamp>,
    /// Everything before was read.
    pub read_until: Option<Timestamp>,
    pub next_turn: Option<Timestamp>,
    pub readings: u64,
    /// Readings that the vendor gave and that could not be stored: of devices that are not in the fleet, most often.
    pub refused: u64,
    pub is_busy: bool,
    /// Streams whose readings come at another pace than expected, with the seconds between them.
    pub other_cadences: Vec<(&'static str, i64)>,
}

/// The runner of all sources of an engine.
#[derive(Clone)]
pub struct Sources(Arc<Shared>);

struct Shared {
    asker: Asker,
    known: Mutex<Known>,
    wake: Notify,
    stopping: AtomicBool,
    /// Told when it is stopping.
    stopped: Notify,
    /// Days that were looked at; `None`: the last process knows.
    watch: Mutex<Option<Watch>>,
    changes: Mutex<VecDeque<CadenceChange>>,
}

#[derive(Default)]
struct Known {
    fleet: Option<Arc<Fleet>>,
    sources: BTreeMap<EntityId, Arc<Source>>,
    /// Of jobs that were cancelled while they run.
    cancels: HashMap<Uuid, Arc<AtomicBool>>,
}

/// A source that is polled.
struct Source {
    id: EntityId,
    /// The metadata that it was read from, without what the runner writes.
    told: Map<String, Value>,
    zone: TimeZone,
    /// When somebody changed the source last: secrets look the same whatever they are.
    changed: Timestamp,
    /// A backfill was asked for.
    has_new_job: AtomicBool,
    /// Held during a turn.
    work: TurnMutex<Option<Work>>,
    /// The same source as it was before a change, which may be in its last turn.
    before: Mutex<Option<Arc<Source>>>,
    glance: Mutex<Glance>,
    /// Of a source that is not polled but listens.
    listener: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get_mut().take() {
            listener.abort();
        }
    }
}

/// What is shown of a source while it works.
#[derive(Clone, Debug)]
struct Glance {
    name: String,
    next_turn: i64,
    is_busy: bool,
    obstacle: Option<Obstacle>,
    error: Option<String>,
    status: &'static str,
    last_success: Option<i64>,
    read_until: Option<i64>,
    readings: u64,
    refused: u64,
    other_cadences: Vec<(&'static str, i64)>,
    /// Series whose gaps its vendor is asked for.
    watched: BTreeSet<(EntityId, Arc<str>)>,
    /// The status that the catalog shows.
    shown: Option<String>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or_default()
}

fn told(source: &EnergySource) -> Map<String, Value> {
    let mut metadata = source.metadata.clone();
    metadata.retain(|name, _| !OWN_FIELDS.contains(&name.as_str()));
    metadata
}

impl Sources {
    pub fn new(engine: Arc<Engine>) -> Self {
        let asker = Asker::new(engine);
        let shared = Shared {
            asker,
            known: Mutex::default(),
            wake: Notify::new(),
            stopping: AtomicBool::new(false),
            stopped: Notify::new(),
            watch: Mutex::default(),
            changes: Mutex::default(),
        };
        Self(Arc::new(shared))
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.0.asker.engine
    }

    fn now(&self) -> i64 {
        self.0.asker.now()
    }

    /// Every source that uses an API.
    pub fn status(&self) -> Vec<SourceStatus> {
        let sources: Vec<_> = self.0.known.lock().sources.values().cloned().collect();
        sources.iter().map(|source| status_of(source)).collect()
    }
}

fn status_of(source: &Source) -> SourceStatus {
    let glance = source.glance.lock().clone();
    SourceStatus {
        id: source.id,
        name: glance.name,
        connection_status: glance.status,
        last_error: glance.error,
        last_success: glance.last_success.map(time),
        read_until: glance.read_until.map(time),
        next_turn: (glance.next_turn < i64::MAX).then(|| time(glance.next_turn)),
        readings: glance.readings,
        refused: glance.refused,
        is_busy: glance.is_busy,
        other_cadences: glance.other_cadences,
    }
}

/// The word for a connection that failed in such a way.
fn stopped_status(class: &Class) -> &'static str {
    match class {
        Class::AuthExpired | Class::AuthDead => "unauthorized",
        Class::Forbidden => "forbidden",
        Class::Gone => "gone",
        Class::Refused => "misconfigured",
        Class::Throttled { .. } | Class::QuotaExhausted => "waiting",
        Class::Retry | Class::WindowTooLarge | Class::NoDataYet | Class::BadPayload => "failing",
    }
}

#[cfg(test)]
mod tests;

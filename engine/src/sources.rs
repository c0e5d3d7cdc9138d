//! Sources: vendor APIs are polled within their budgets, without gaps.
//!
//! A [connector](connector) knows how a vendor is asked and what an answer says. Everything else is common: [when](schedule) a source has
//! its [turn](turn), how many [calls](budget) its credential has left, which [window](cursor) comes next, what is done about a
//! [failure], where the readings [go](store), what is [missing](gaps), and how [history](backfill) is fetched.
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
mod mapping;
mod mqtt;
mod pinned;
mod raw;
mod schedule;
mod settings;
mod solaredge;
mod store;
mod turn;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::{
    sync::{Mutex as TurnMutex, Notify},
    task::{JoinHandle, JoinSet},
};
use uuid::Uuid;
use wattlake_catalog::{EnergySource, EnergySourceDraft, EntityId, Fleet, Job, JobState, Quality};

use self::{
    ask::{Asker, Trouble},
    backfill::{Backfill, Step, step_key},
    budget::Purpose,
    connector::Window,
    cursor::DAY,
    failure::Class,
    settings::SourceSettings,
    store::{Places, batch},
    turn::Work,
};
pub use self::{
    connector::FoundSystem,
    settings::{Obstacle, PROVIDERS},
};
use crate::{Engine, Error, ErrorKind, Result};

const SECOND: i64 = 1_000_000;
/// The clock is looked at this often, however far the next turn is: it may have been set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same where the clock is set by a test.
const LOOK_OFTEN: Duration = Duration::from_millis(2);
/// Readings that a dry run shows of a stream.
const DRY_READINGS: usize = 100;
/// Sources in their turn at once.
const TURNS_AT_ONCE: usize = 64;
/// A source that has nothing to do is looked at again after this: its tokens must not die.
const IDLE_MAX: i64 = 86_400 * SECOND;
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

/// The outcome of a connection test.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionTest {
    pub connection_status: &'static str,
    pub last_tested: Timestamp,
    pub message: String,
}

/// What a backfill would take.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackfillPlan {
    pub calls: i64,
    /// Calls of this month that polling leaves, now.
    pub calls_left: i64,
    pub estimated_end: Timestamp,
    pub streams: Vec<&'static str>,
}

/// What a poll would store of a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    pub stream: &'static str,
    pub count: usize,
    /// The first ones.
    pub readings: Vec<DryReading>,
    /// Readings that would not be stored: of devices that are not in the fleet, or in units that do not fit.
    pub refused: u64,
    /// What the configuration names and the answer does not have.
    pub unmatched: Vec<String>,
    /// Paths of numbers that the configuration does not take.
    pub left_over: Vec<String>,
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DryReading {
    pub entity_id: EntityId,
    pub metric: String,
    pub timestamp: Timestamp,
    pub value: f64,
    pub unit: String,
    pub quality: Quality,
}

/// What came of decoding kept answers again.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replayed {
    pub answers: u64,
    pub readings: u64,
    pub refused: u64,
    /// Answers that could not be read.
    pub unread: u64,
}

/// A job with how far it has come.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    #[serde(flatten)]
    pub job: Job,
    pub kind: &'static str,
    pub calls: u64,
    pub readings: u64,
    /// From 0 to 1.
    pub progress: f64,
}

/// The runner of all sources of an engine.
#[derive(Clone)]
pub struct Sources(Arc<Shared>);

struct Shared {
    asker: Asker,
    known: Mutex<Known>,
    wake: Notify,
    stopping: AtomicBool,
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
    /// When the source was changed last, by others or by us: secrets look the same whatever they are.
    changed: Mutex<Timestamp>,
    /// We are changing it.
    is_noting: AtomicBool,
    /// Held during a turn.
    work: TurnMutex<Option<Work>>,
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
    pub fn new(engine: Arc<Engine>) -> Result<Self> {
        let asker = Asker::new(engine)?;
        let shared =
            Shared { asker, known: Mutex::default(), wake: Notify::new(), stopping: AtomicBool::new(false) };
        Ok(Self(Arc::new(shared)))
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.0.asker.engine
    }

    fn now(&self) -> i64 {
        self.0.asker.now()
    }

    /// Gives sources their turns until [`Sources::stop`].
    pub async fn run(&self) {
        let mut turns = JoinSet::new();
        while !self.0.stopping.load(Ordering::Acquire) {
            let next = match self.start_due(&mut turns).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "sources could not be looked at");
                    None
                }
            };
            while turns.try_join_next().is_some() {}
            let longest = if self.engine().clock().is_system() { LOOK_EVERY } else { LOOK_OFTEN };
            let wait = next.map_or(longest, |at| {
                Duration::from_micros(u64::try_from(at - self.now()).unwrap_or(0)).min(longest)
            });
            tokio::select! {
                () = self.0.wake.notified() => {}
                () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
            }
        }
        // A turn is made of calls that end by themselves; its cursors are where its readings are.
        while turns.join_next().await.is_some() {}
    }

    /// Ends [`Sources::run`] after the turns that are under way.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }

    /// Runs every turn that is due to its end; answers when the next one is, microseconds since 1970 UTC. For those who set the clock
    /// themselves.
    pub async fn run_due(&self) -> Result<Option<i64>> {
        let mut turns = JoinSet::new();
        self.start_due(&mut turns).await?;
        while turns.join_next().await.is_some() {}
        self.start_due(&mut JoinSet::new()).await.map(|_| ())?;
        let known = self.0.known.lock();
        Ok(known.sources.values().map(|source| source.glance.lock().next_turn).min())
    }

    /// Starts the turns that are due; answers when the next one is.
    async fn start_due(&self, turns: &mut JoinSet<()>) -> Result<Option<i64>> {
        self.reconcile().await?;
        let now = self.now();
        let mut next: Option<i64> = None;
        let sources: Vec<_> = self.0.known.lock().sources.values().cloned().collect();
        for source in sources {
            {
                let mut glance = source.glance.lock();
                if glance.is_busy {
                    continue;
                }
                if glance.next_turn > now {
                    next = Some(next.map_or(glance.next_turn, |next| next.min(glance.next_turn)));
                    continue;
                }
                if turns.len() >= TURNS_AT_ONCE {
                    continue;
                }
                glance.is_busy = true;
            }
            let this = self.clone();
            turns.spawn(async move {
                // Whatever happens in a turn, the others go on.
                let turn = tokio::spawn({
                    let (this, source) = (this.clone(), Arc::clone(&source));
                    async move { this.turn(&source).await }
                });
                if turn.await.is_err() {
                    let mut glance = source.glance.lock();
                    glance.next_turn = this.now() + 3600 * SECOND;
                    glance.error = Some(
                        "the turn of this source failed unexpectedly; the server's log says more".into(),
                    );
                }
                source.glance.lock().is_busy = false;
                this.0.wake.notify_one();
            });
        }
        Ok(next)
    }

    /// Takes over what has changed in the fleet.
    async fn reconcile(&self) -> Result<()> {
        let fleet = self.engine().catalog().fleet();
        if self.0.known.lock().fleet.as_ref().is_some_and(|known| Arc::ptr_eq(known, &fleet)) {
            return Ok(());
        }
        let mut fresh = Vec::new();
        let mut wanted = Vec::new();
        for source in fleet.sources().filter(|source| settings::uses_api(source)) {
            let zone = self.zone(&fleet, source.id);
            wanted.push(source.id);
            let known = self.0.known.lock().sources.get(&source.id).cloned();
            let is_same = known.is_some_and(|known| {
                known.is_noting.load(Ordering::Acquire)
                    || (known.told == told(source)
                        && known.zone == zone
                        && *known.changed.lock() == source.updated_at)
            });
            if !is_same {
                fresh.push(self.take_up(source, zone).await?);
            }
        }
        let fresh: Vec<_> = fresh.into_iter().map(Arc::new).collect();
        {
            let mut known = self.0.known.lock();
            known.sources.retain(|id, _| wanted.contains(id));
            for source in &fresh {
                known.sources.insert(source.id, Arc::clone(source));
            }
            known.fleet = Some(fleet);
        }
        for source in fresh {
            self.listen(&source).await?;
        }
        Ok(())
    }

    /// Starts the listener of a source that has one.
    async fn listen(&self, source: &Arc<Source>) -> Result<()> {
        if source.told.get("apiProvider").and_then(Value::as_str) != Some(MQTT)
            || source.glance.lock().obstacle.is_some()
        {
            return Ok(());
        }
        let Ok(broker) = self.broker(source.id, &source.zone).await? else { return Ok(()) };
        let (this, of) = (self.clone(), Arc::downgrade(source));
        let tell = move |news: &mqtt::News| {
            let Some(source) = of.upgrade() else { return };
            let status = if news.is_connected { "connected" } else { "failing" };
            let is_shown = {
                let mut glance = source.glance.lock();
                glance.status = status;
                glance.error.clone_from(&news.error);
                (glance.readings, glance.refused) = (news.readings, news.refused);
                if news.is_connected {
                    glance.last_success = Some(this.now());
                }
                glance.shown.replace(status.to_owned()).as_deref() == Some(status)
            };
            if !is_shown {
                let (this, id, error) = (this.clone(), source.id, news.error.clone());
                tokio::spawn(async move {
                    if let Err(error) = this.note(id, status, None, error.as_deref()).await {
                        tracing::warn!(source = %id, %error, "the state of a connection was not noted");
                    }
                });
            }
        };
        *source.listener.lock() = Some(tokio::spawn(broker.run(Arc::clone(self.engine()), tell)));
        Ok(())
    }

    async fn broker(
        &self,
        id: EntityId,
        zone: &TimeZone,
    ) -> Result<std::result::Result<mqtt::Broker, Obstacle>> {
        let source = self.engine().catalog().source_with_secrets(id).await?;
        Ok(SourceSettings::read_broker(&source, zone))
    }

    fn zone(&self, fleet: &Fleet, id: EntityId) -> TimeZone {
        let name = fleet.site_of(id).and_then(|site| site.zone_name().map(str::to_owned));
        let name = name.unwrap_or_else(|| self.engine().settings().time_zone.0.clone());
        TimeZone::get(&name).unwrap_or(TimeZone::UTC)
    }

    async fn take_up(&self, source: &EnergySource, zone: TimeZone) -> Result<Source> {
        let now = self.now();
        let mut glance = Glance {
            name: source.name.clone(),
            next_turn: now,
            is_busy: false,
            obstacle: None,
            error: None,
            status: "pending",
            last_success: None,
            read_until: None,
            readings: 0,
            refused: 0,
            other_cadences: Vec::new(),
            shown: source.metadata.get("connectionStatus").and_then(Value::as_str).map(str::to_owned),
        };
        let is_listening = source.metadata.get("apiProvider").and_then(Value::as_str) == Some(MQTT);
        let settings = match is_listening {
            true => self.broker(source.id, &zone).await?.map(|_| None),
            false => self.settings(source.id, &zone).await?.map(Some),
        };
        let work = match settings {
            // It has no turns.
            Ok(None) => {
                glance.next_turn = i64::MAX;
                None
            }
            Ok(Some(settings)) => {
                let states = self.engine().progress().await?;
                let mut work = Work::new(Arc::new(settings), &states, now);
                work.backfill = self.unfinished(source.id, &states).await?;
                Some(work)
            }
            Err(obstacle) => {
                glance.status = obstacle.status;
                glance.error = Some(obstacle.message.clone());
                glance.obstacle = Some(obstacle);
                glance.next_turn = i64::MAX;
                None
            }
        };
        Ok(Source {
            id: source.id,
            told: told(source),
            zone,
            changed: Mutex::new(source.updated_at),
            is_noting: AtomicBool::new(false),
            work: TurnMutex::new(work),
            glance: Mutex::new(glance),
            listener: Mutex::new(None),
        })
    }

    async fn settings(
        &self,
        id: EntityId,
        zone: &TimeZone,
    ) -> Result<std::result::Result<SourceSettings, Obstacle>> {
        Ok(match self.engine().catalog().source_with_secrets(id).await {
            Ok(source) => SourceSettings::read(&source, zone),
            Err(error) if error.kind == wattlake_catalog::ErrorKind::Internal => {
                Err(Obstacle { status: "misconfigured", message: error.message })
            }
            Err(error) => return Err(error.into()),
        })
    }

    /// The oldest running job of a source.
    async fn unfinished(&self, id: EntityId, states: &BTreeMap<String, String>) -> Result<Option<Backfill>> {
        let jobs = self.engine().catalog().jobs().await?;
        let job = jobs.into_iter().rfind(|job| job.source_id == id && job.state == JobState::Running);
        Ok(job.map(|job| {
            let step: Step = states
                .get(&step_key(job.id))
                .and_then(|text| serde_json::from_str(text).ok())
                .unwrap_or_default();
            let cancelled = Arc::clone(self.0.known.lock().cancels.entry(job.id).or_default());
            Backfill { job, step, cancelled }
        }))
    }

    async fn turn(&self, source: &Source) {
        let mut work = source.work.lock().await;
        let Some(work) = work.as_mut() else { return };
        if work.backfill.is_none() {
            let states = self.engine().progress().await;
            if let Ok(states) = states
                && let Ok(found) = self.unfinished(source.id, &states).await
            {
                work.backfill = found;
            }
        }
        let next = work.turn(&self.0.asker).await;
        self.show(source, work, next).await;
    }

    /// Puts what a turn found out where users see it.
    async fn show(&self, source: &Source, work: &Work, next: i64) {
        let now = self.now();
        let status = match &work.stopped {
            Some(failure) => stopped_status(&failure.class),
            None if work.failures > 0 => "failing",
            None if work.is_closed(now) => "forbidden",
            None if work.last_success.is_some() => "connected",
            None => "pending",
        };
        let is_shown = {
            let mut glance = source.glance.lock();
            glance.next_turn = next.min(now + IDLE_MAX);
            if work.stopped.is_some() {
                glance.next_turn = i64::MAX;
            }
            glance.status = status;
            glance.error = work.error.clone().filter(|_| status != "connected" || work.failures > 0);
            glance.last_success = work.last_success;
            glance.read_until = work.read_until();
            glance.readings = work.readings;
            glance.refused = work.refused;
            glance.other_cadences = work.other_cadences();
            let is_shown = glance.shown.as_deref() == Some(status) || status == "pending";
            glance.shown = Some(status.to_owned());
            is_shown
        };
        if !is_shown && let Err(error) = self.note(source.id, status, None, work.error.as_deref()).await {
            tracing::warn!(source = %source.id, %error, "the state of a connection was not noted");
        }
    }

    /// Writes the state of a connection into the metadata of its source.
    async fn note(
        &self,
        id: EntityId,
        status: &str,
        tested: Option<Timestamp>,
        error: Option<&str>,
    ) -> Result<()> {
        let fleet = self.engine().catalog().fleet();
        let Some(source) = fleet.source(id) else { return Ok(()) };
        let mut draft = EnergySourceDraft::from(source);
        draft.metadata.insert("connectionStatus".into(), status.into());
        if let Some(tested) = tested {
            draft.metadata.insert("lastTested".into(), tested.to_string().into());
        }
        match error.filter(|_| status != "connected") {
            Some(error) => drop(draft.metadata.insert("lastError".into(), error.into())),
            None => drop(draft.metadata.remove("lastError")),
        }
        let known = self.0.known.lock().sources.get(&id).cloned();
        known.iter().for_each(|known| known.is_noting.store(true, Ordering::Release));
        let changed = self.engine().catalog().update_source(id, &draft).await;
        if let Some(known) = known {
            changed.iter().for_each(|source| *known.changed.lock() = source.updated_at);
            known.is_noting.store(false, Ordering::Release);
            // What others changed meanwhile is looked at again.
            self.0.known.lock().fleet = None;
        }
        changed?;
        Ok(())
    }

    /// Tries the connection of a source, and notes the outcome.
    ///
    /// # Errors
    /// When there is no such source, or the catalog does not answer. A connection that does not work is no error.
    pub async fn test(&self, id: EntityId) -> Result<ConnectionTest> {
        let fleet = self.engine().catalog().fleet();
        let zone = self.zone(&fleet, id);
        let provider = fleet.source(id).and_then(|source| source.metadata.get("apiProvider")?.as_str());
        let (status, message) = match provider {
            Some(MQTT) => self.try_broker(id, &zone).await?,
            _ => self.try_connection(id, &zone).await?,
        };
        let last_tested = time(self.now());
        self.note(id, status, Some(last_tested), Some(&message)).await?;
        if status == "connected" {
            self.resume(id);
        }
        Ok(ConnectionTest { connection_status: status, last_tested, message })
    }

    async fn try_broker(&self, id: EntityId, zone: &TimeZone) -> Result<(&'static str, String)> {
        Ok(match self.broker(id, zone).await? {
            Err(obstacle) => (obstacle.status, obstacle.message),
            Ok(broker) => match broker.probe().await {
                Ok(()) => ("connected", "the broker answered".to_owned()),
                Err(words) => ("failing", words),
            },
        })
    }

    async fn try_connection(&self, id: EntityId, zone: &TimeZone) -> Result<(&'static str, String)> {
        let settings = self.settings(id, zone).await?;
        // A device in the home whose certificate nobody has signed is known by it from now on.
        if let Ok(settings) = &settings
            && settings.may_pin
            && let Err(Trouble::Failed(failure)) = self.0.asker.probe(settings).await
            && failure.message.contains("certificate")
            && let Ok(seen) = pinned::seen(&settings.connector.probe().url).await
        {
            let fleet = self.engine().catalog().fleet();
            let source = fleet
                .source(id)
                .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no energy source {id}")))?;
            let mut draft = EnergySourceDraft::from(source);
            draft.metadata.insert("pinSha256".into(), seen.as_str().into());
            self.engine().catalog().update_source(id, &draft).await?;
            let (status, message) = Box::pin(self.try_connection(id, zone)).await?;
            return Ok((
                status,
                format!("{message}; its certificate was not known, and is pinned now: SHA-256 {seen}"),
            ));
        }
        Ok(match settings {
            Err(obstacle) => (obstacle.status, obstacle.message),
            Ok(settings) => match self.0.asker.probe(&settings).await {
                Ok(()) => ("connected", "the vendor answered".to_owned()),
                Err(Trouble::Later(at)) => (
                    "waiting",
                    format!(
                        "no call may be made before {}: the budget is used up, or the vendor asked for a pause",
                        time(at)
                    ),
                ),
                Err(Trouble::Failed(failure)) => (stopped_status(&failure.class), failure.message),
            },
        })
    }

    /// A source that was given up is asked again at once.
    fn resume(&self, id: EntityId) {
        let mut known = self.0.known.lock();
        let is_stopped = known.sources.get(&id).is_some_and(|source| {
            source.glance.lock().next_turn == i64::MAX && source.listener.lock().is_none()
        });
        if is_stopped {
            known.sources.remove(&id);
            known.fleet = None;
        }
        drop(known);
        self.0.wake.notify_one();
    }

    /// Polls a source now, and answers how it stands then.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is in the way.
    pub async fn poll(&self, id: EntityId) -> Result<SourceStatus> {
        self.resume(id);
        self.reconcile().await?;
        let source = self.known(id)?;
        {
            let mut work = source.work.lock().await;
            let Some(work) = work.as_mut() else { return Err(self.obstacle(&source)) };
            work.poll_at = self.now();
            let next = work.turn(&self.0.asker).await;
            self.show(&source, work, next).await;
        }
        self.0.wake.notify_one();
        Ok(status_of(&source))
    }

    fn known(&self, id: EntityId) -> Result<Arc<Source>> {
        if let Some(source) = self.0.known.lock().sources.get(&id) {
            return Ok(Arc::clone(source));
        }
        let fleet = self.engine().catalog().fleet();
        let source = fleet
            .source(id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no energy source {id}")))?;
        Err(match settings::provider(source) {
            Err(obstacle) => Error::invalid(obstacle.message),
            Ok(_) => Error::invalid(format!("the energy source {id} is not active")),
        })
    }

    fn obstacle(&self, source: &Source) -> Error {
        let glance = source.glance.lock();
        Error::invalid(
            glance
                .obstacle
                .as_ref()
                .map_or("readings of this source come by themselves", |o| o.message.as_str()),
        )
    }

    /// Asks for what the next poll would, and shows what would be stored; with an answer that somebody has kept, without a call.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is in the way.
    pub async fn dry_run(
        &self,
        id: EntityId,
        stream: Option<&str>,
        answer: Option<&Value>,
    ) -> Result<Vec<DryRun>> {
        self.reconcile().await?;
        let source = self.known(id)?;
        let work = source.work.lock().await;
        let Some(work) = work.as_ref() else { return Err(self.obstacle(&source)) };
        let settings = &work.settings;
        let named = |known: &&connector::Stream| stream.map_or(known.is_polled, |name| name == known.name);
        let streams: Vec<_> = work.streams().iter().filter(named).copied().collect();
        if streams.is_empty() {
            let known: Vec<_> = work.streams().iter().map(|stream| stream.name).collect();
            return Err(Error::invalid(format!("stream: there are {}", known.join(", "))));
        }
        let places =
            Places { source: id, targets: &settings.targets, fleet: self.engine().catalog().fleet() };
        let mut runs = Vec::new();
        for stream in streams {
            let now = self.now();
            let window = match (answer, stream.is_instant) {
                // Whatever time an answer is about.
                (Some(_), _) => Window { from: i64::MIN / 4, to: now },
                (None, true) => Window { from: now, to: now },
                (None, false) => {
                    let to = cursor::floor(now - stream.settles * SECOND, stream.cadence);
                    Window { from: to - work.span(&stream).min(DAY), to }
                }
            };
            let fetched;
            let body = match answer {
                Some(answer) => answer,
                None => {
                    let asked = self.0.asker.body(settings, Purpose::Poll, &stream, window, false).await;
                    fetched = asked.map_err(|trouble| match trouble {
                        Trouble::Later(at) => {
                            Error::invalid(format!("no call may be made before {}", time(at)))
                        }
                        Trouble::Failed(failure) => Error::invalid(failure.message),
                    })?;
                    &fetched
                }
            };
            let decoded = settings.connector.decode(&stream, window, body);
            let (unmatched, left_over) = settings.connector.left_over(&stream, window, body);
            let (points, error) = match decoded {
                Ok(decoded) => (decoded.points, None),
                Err(failure) => (Vec::new(), Some(settings.secrets.redact(&failure.message))),
            };
            let (batch, refused) = batch(self.engine(), &places, &points);
            let reading = |row: usize| {
                let series = &batch.table[batch.series[row] as usize];
                DryReading {
                    entity_id: series.entity,
                    metric: series.metric.clone(),
                    timestamp: time(batch.ts[row]),
                    value: batch.value[row],
                    unit: series.unit.clone(),
                    quality: batch.quality[row],
                }
            };
            runs.push(DryRun {
                stream: stream.name,
                count: batch.len(),
                readings: (0..batch.len().min(DRY_READINGS)).map(reading).collect(),
                refused,
                unmatched,
                left_over,
                error,
            });
        }
        Ok(runs)
    }

    /// Decodes what vendors answered in a span of time again and stores it; answers how many answers and readings that were, and how many
    /// answers could not be read.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is in the way.
    pub async fn replay(&self, id: EntityId, from: Timestamp, to: Timestamp) -> Result<Replayed> {
        self.reconcile().await?;
        let source = self.known(id)?;
        let work = source.work.lock().await;
        let Some(work) = work.as_ref() else { return Err(self.obstacle(&source)) };
        let settings = &work.settings;
        let mut replayed = Replayed::default();
        for answer in self.0.asker.raw.answers(id, from.as_microsecond(), to.as_microsecond()) {
            let stream = work.streams().iter().find(|stream| raw::file_name(stream.name) == answer.stream);
            let path = answer.path.clone();
            let text = tokio::task::spawn_blocking(move || raw::read(&path)).await;
            let text = text.map_err(|_| Error::internal("an answer could not be read"))??;
            let window = Window { from: answer.from, to: answer.to };
            let decoded = stream.zip(serde_json::from_slice::<Value>(&text).ok());
            let decoded =
                decoded.and_then(|(stream, body)| settings.connector.decode(stream, window, &body).ok());
            let Some(decoded) = decoded else {
                replayed.unread += 1;
                continue;
            };
            let places =
                Places { source: id, targets: &settings.targets, fleet: self.engine().catalog().fleet() };
            let (batch, refused) = batch(self.engine(), &places, &decoded.points);
            replayed.answers += 1;
            replayed.readings += batch.len() as u64;
            replayed.refused += refused;
            self.engine().write(batch).await?;
        }
        Ok(replayed)
    }

    /// The systems that a credential sees, with the sources that poll them already. `metadata` is that of a source, with secrets in plain
    /// text, or with those of `like`, a source that there is.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is in the way.
    pub async fn discover(
        &self,
        like: Option<EntityId>,
        metadata: &Map<String, Value>,
    ) -> Result<Vec<FoundSystem>> {
        let now = time(self.now());
        let mut source = match like {
            Some(id) => self.engine().catalog().source_with_secrets(id).await?,
            None => EnergySource {
                id: EntityId(Uuid::nil()),
                meter_id: EntityId(Uuid::nil()),
                name: "discovery".into(),
                source_type: "solar".into(),
                capacity: None,
                metadata: Map::new(),
                active: true,
                created_at: now,
                updated_at: now,
            },
        };
        source.metadata.extend(metadata.iter().map(|(name, value)| (name.clone(), value.clone())));
        source.metadata.insert("useAPI".into(), true.into());
        source.metadata.entry("systemId").or_insert("0".into());
        let settings = SourceSettings::read(&source, &TimeZone::UTC)
            .map_err(|obstacle| Error::invalid(obstacle.message))?;
        let found = self.0.asker.list(&settings).await.map_err(|trouble| match trouble {
            Trouble::Later(at) => Error::invalid(format!("no call may be made before {}", time(at))),
            Trouble::Failed(failure) => Error::invalid(failure.message),
        })?;
        let mut found =
            found.ok_or_else(|| Error::invalid("this vendor does not tell which systems there are"))?;
        let fleet = self.engine().catalog().fleet();
        let provider = source.metadata.get("apiProvider");
        for system in &mut found {
            let known = fleet.sources().find(|known| {
                known.metadata.get("apiProvider") == provider
                    && known.metadata.get("systemId").and_then(Value::as_str) == Some(&system.system_id)
            });
            system.source_id = known.map(|known| known.id);
        }
        Ok(found)
    }

    /// What a backfill of `from <= ts < to` would take.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is in the way.
    pub async fn plan_backfill(&self, id: EntityId, from: Timestamp, to: Timestamp) -> Result<BackfillPlan> {
        self.reconcile().await?;
        let source = self.known(id)?;
        let work = source.work.lock().await;
        let Some(work) = work.as_ref() else { return Err(self.obstacle(&source)) };
        let now = self.now();
        let streams = work.streams();
        let span = |stream: &connector::Stream| work.span(stream);
        let calls = backfill::calls(streams, span, from.as_microsecond(), to.as_microsecond(), now);
        let limits = work.settings.limits;
        let (calls_left, end) =
            self.0.asker.with_ledger(&work.settings, |ledger| ledger.estimate(&limits, calls, now)).await?;
        Ok(BackfillPlan {
            calls,
            calls_left,
            estimated_end: time(end),
            streams: streams.iter().map(|stream| stream.name).collect(),
        })
    }

    /// Begins a backfill. One source has one at a time.
    ///
    /// # Errors
    /// As [`Sources::plan_backfill`]; [`ErrorKind::Conflict`] while another one runs.
    pub async fn start_backfill(&self, id: EntityId, from: Timestamp, to: Timestamp) -> Result<JobStatus> {
        let plan = self.plan_backfill(id, from, to).await?;
        if let Some(running) = self
            .jobs()
            .await?
            .into_iter()
            .find(|one| one.job.source_id == id && one.job.state == JobState::Running)
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("job {} fetches history of this source already; cancel it or wait", running.job.id),
            ));
        }
        let now = time(self.now());
        let job = Job {
            id: Uuid::now_v7(),
            source_id: id,
            from,
            to,
            state: JobState::Running,
            calls_planned: plan.calls,
            error: None,
            created_at: now,
            updated_at: now,
        };
        self.engine().catalog().create_job(&job).await?;
        if let Ok(source) = self.known(id) {
            let mut glance = source.glance.lock();
            glance.next_turn = glance.next_turn.min(self.now());
        }
        self.0.wake.notify_one();
        Ok(job_status(job, &Step::default()))
    }

    /// All jobs, the newest first.
    pub async fn jobs(&self) -> Result<Vec<JobStatus>> {
        let jobs = self.engine().catalog().jobs().await?;
        let states = self.engine().progress().await?;
        let with_step = |job: Job| {
            let step = states.get(&step_key(job.id)).and_then(|text| serde_json::from_str(text).ok());
            job_status(job, &step.unwrap_or_default())
        };
        Ok(jobs.into_iter().map(with_step).collect())
    }

    /// Ends a job; what it has fetched stays.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is none; [`ErrorKind::Conflict`] when it has ended.
    pub async fn cancel(&self, id: Uuid) -> Result<JobStatus> {
        let catalog = self.engine().catalog();
        catalog.job(id).await?;
        if let Some(cancelled) = self.0.known.lock().cancels.get(&id) {
            cancelled.store(true, Ordering::Relaxed);
        }
        if !catalog.end_job(id, JobState::Cancelled, None, time(self.now())).await? {
            return Err(Error::new(ErrorKind::Conflict, format!("job {id} has ended already")));
        }
        let jobs = self.jobs().await?;
        let job = jobs.into_iter().find(|one| one.job.id == id);
        job.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no job {id}")))
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

fn job_status(job: Job, step: &Step) -> JobStatus {
    let progress = match job.state {
        JobState::Done => 1.0,
        _ => (step.calls as f64 / (job.calls_planned.max(1)) as f64).min(1.0),
    };
    JobStatus { job, kind: "backfill", calls: step.calls, readings: step.readings, progress }
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

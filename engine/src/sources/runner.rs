//! Giving sources their turns, and showing how they stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::{sync::Mutex as TurnMutex, task::JoinSet};
use wattlake_catalog::{EnergySource, EntityId, JobState};

use super::{
    Glance, MQTT, SECOND, Source, Sources,
    backfill::{Backfill, Step, step_key},
    cursor::DAY,
    mqtt,
    settings::{self, Obstacle, SourceSettings},
    stopped_status,
    store::Places,
    time, told,
    turn::Work,
};
use crate::Result;

/// The clock is looked at this often, however far the next turn is: it may have been set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The same where the clock is set by a test.
const LOOK_OFTEN: Duration = Duration::from_millis(2);
/// Sources in their turn at once.
const TURNS_AT_ONCE: usize = 64;
/// A source that has nothing to do is looked at again after this: its tokens must not die.
const IDLE_MAX: i64 = 86_400 * SECOND;
/// Closed gaps are listed for so long.
const GAPS_KEPT_DAYS: i64 = 400;

impl Sources {
    /// Gives sources their turns until [`Sources::stop`].
    pub async fn run(&self) {
        let mut turns = JoinSet::new();
        let mut tidied = i64::MIN;
        while !self.0.stopping.load(Ordering::Acquire) {
            if self.now() - tidied.max(0) > DAY {
                tidied = self.now();
                self.forget_gaps().await;
            }
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

    /// Forgets gaps that were closed long ago.
    async fn forget_gaps(&self) {
        let before = time(self.now().saturating_sub(GAPS_KEPT_DAYS * DAY));
        if let Err(error) = self.engine().catalog().forget_closed_gaps(before).await {
            tracing::warn!(%error, "old gaps were not forgotten");
        }
    }

    /// Ends [`Sources::run`] after the turns that are under way.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.wake.notify_one();
        self.0.stopped.notify_one();
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
    pub(super) async fn start_due(&self, turns: &mut JoinSet<()>) -> Result<Option<i64>> {
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
    pub(super) async fn reconcile(&self) -> Result<()> {
        let fleet = self.engine().catalog().fleet();
        if self.0.known.lock().fleet.as_ref().is_some_and(|known| Arc::ptr_eq(known, &fleet)) {
            return Ok(());
        }
        let mut fresh = Vec::new();
        let mut wanted = Vec::new();
        for source in fleet.sources().filter(|source| settings::uses_api(source)) {
            let zone = self.zone_of(source.id);
            wanted.push(source.id);
            let known = self.0.known.lock().sources.get(&source.id).cloned();
            let is_same = known.is_some_and(|known| {
                known.told == told(source) && known.zone == zone && known.changed == source.updated_at
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
                let before = known.sources.insert(source.id, Arc::clone(source));
                *source.before.lock() =
                    before.filter(|before| before.glance.lock().is_busy || before.before.lock().is_some());
            }
            known.fleet = Some(fleet);
        }
        for source in fresh {
            self.listen(&source).await?;
        }
        Ok(())
    }

    /// Starts the listener of a source that has one.
    pub(super) async fn listen(&self, source: &Arc<Source>) -> Result<()> {
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

    pub(super) async fn broker(
        &self,
        id: EntityId,
        zone: &TimeZone,
    ) -> Result<std::result::Result<mqtt::Broker, Obstacle>> {
        let source = self.engine().catalog().source_with_secrets(id).await?;
        Ok(SourceSettings::read_broker(&source, zone))
    }

    /// The zone of the site of an energy source, or the default one.
    pub fn zone_of(&self, id: EntityId) -> TimeZone {
        let fleet = self.engine().catalog().fleet();
        let name = fleet.site_of(id).and_then(|site| site.zone_name().map(str::to_owned));
        let name = name.unwrap_or_else(|| self.engine().settings().time_zone.0.clone());
        TimeZone::get(&name).unwrap_or(TimeZone::UTC)
    }

    pub(super) async fn take_up(&self, source: &EnergySource, zone: TimeZone) -> Result<Source> {
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
            watched: BTreeSet::new(),
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
                glance.watched = self.watched(source.id, &work);
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
            changed: source.updated_at,
            has_new_job: AtomicBool::new(false),
            work: TurnMutex::new(work),
            before: Mutex::new(None),
            glance: Mutex::new(glance),
            listener: Mutex::new(None),
        })
    }

    fn watched(&self, source: EntityId, work: &Work) -> BTreeSet<(EntityId, Arc<str>)> {
        let fleet = self.engine().catalog().fleet();
        work.watched(&Places { source, targets: &work.settings.targets, fleet })
    }

    pub(super) async fn settings(
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
    pub(super) async fn unfinished(
        &self,
        id: EntityId,
        states: &BTreeMap<String, String>,
    ) -> Result<Option<Backfill>> {
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

    /// The work of a source, when nobody else is at it.
    pub(super) async fn work<'a>(&self, source: &'a Source) -> tokio::sync::MutexGuard<'a, Option<Work>> {
        let mut work = source.work.lock().await;
        let mut before = source.before.lock().take();
        let is_changed = before.is_some();
        // A last turn goes on as the source was before; what that read is not read again.
        while let Some(ending) = before {
            drop(ending.work.lock().await);
            before = ending.before.lock().take();
        }
        if is_changed && let (Some(work), Ok(states)) = (work.as_mut(), self.engine().progress().await) {
            work.take_up_cursors(&states, self.now());
        }
        work
    }

    pub(super) async fn turn(&self, source: &Source) {
        let mut work = self.work(source).await;
        let Some(work) = work.as_mut() else { return };
        if source.has_new_job.swap(false, Ordering::AcqRel) && work.backfill.is_none() {
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
    pub(super) async fn show(&self, source: &Source, work: &Work, next: i64) {
        let now = self.now();
        let status = match &work.stopped {
            Some(failure) => stopped_status(&failure.class),
            // One failure is none that anybody needs to hear of.
            None if work.failures > 1 => "failing",
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
            glance.error.clone_from(&work.error);
            glance.last_success = work.last_success;
            glance.read_until = work.read_until();
            glance.readings = work.readings;
            glance.refused = work.refused;
            glance.other_cadences = work.other_cadences();
            glance.watched = self.watched(source.id, work);
            let is_shown = glance.shown.as_deref() == Some(status) || status == "pending";
            glance.shown = Some(status.to_owned());
            is_shown
        };
        if !is_shown && let Err(error) = self.note(source.id, status, None, work.error.as_deref()).await {
            tracing::warn!(source = %source.id, %error, "the state of a connection was not noted");
        }
    }

    /// Writes the state of a connection into the metadata of its source.
    pub(super) async fn note(
        &self,
        id: EntityId,
        status: &str,
        tested: Option<Timestamp>,
        error: Option<&str>,
    ) -> Result<()> {
        let error = error.filter(|_| status != "connected").map_or(Value::Null, Value::from);
        let mut fields =
            Map::from_iter([("connectionStatus".into(), status.into()), ("lastError".into(), error)]);
        fields.extend(tested.map(|tested| ("lastTested".to_owned(), tested.to_string().into())));
        match self.engine().catalog().note_source(id, &fields).await {
            Ok(_) => Ok(()),
            // Somebody has deleted it meanwhile.
            Err(error) if error.kind == wattlake_catalog::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

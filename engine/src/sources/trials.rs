//! What a user does with a source: test it, poll it, see what a poll would store, decode kept answers again, find systems.

use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;
use wattlake_catalog::{EnergySource, EntityId, Quality};

use super::{
    MQTT, SECOND, Source, SourceStatus, Sources,
    ask::Trouble,
    budget::Purpose,
    connector::{self, FoundSystem, Window},
    cursor::{self, DAY},
    pinned, raw,
    settings::{self, SourceSettings},
    status_of, stopped_status,
    store::{Places, batch},
    time,
};
use crate::{Error, ErrorKind, Result};

/// Readings that a dry run shows of a stream.
const DRY_READINGS: usize = 100;

/// The outcome of a connection test.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionTest {
    pub connection_status: &'static str,
    pub last_tested: Timestamp,
    pub message: String,
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

impl Sources {
    /// Tries the connection of a source, and notes the outcome.
    ///
    /// # Errors
    /// When there is no such source, or the catalog does not answer. A connection that does not work is no error.
    pub async fn test(&self, id: EntityId) -> Result<ConnectionTest> {
        let fleet = self.engine().catalog().fleet();
        let zone = self.zone_of(id);
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

    pub(super) async fn try_broker(&self, id: EntityId, zone: &TimeZone) -> Result<(&'static str, String)> {
        Ok(match self.broker(id, zone).await? {
            Err(obstacle) => (obstacle.status, obstacle.message),
            Ok(broker) => match broker.probe().await {
                Ok(()) => ("connected", "the broker answered".to_owned()),
                Err(words) => ("failing", words),
            },
        })
    }

    pub(super) async fn try_connection(
        &self,
        id: EntityId,
        zone: &TimeZone,
    ) -> Result<(&'static str, String)> {
        let settings = match self.settings(id, zone).await? {
            Ok(settings) => settings,
            Err(obstacle) => return Ok((obstacle.status, obstacle.message)),
        };
        let failure = match self.0.asker.probe(&settings).await {
            Ok(()) => return Ok(("connected", "the vendor answered".to_owned())),
            Err(Trouble::Later(at)) => {
                let words = "the budget is used up, or the vendor asked for a pause";
                return Ok(("waiting", format!("no call may be made before {}: {words}", time(at))));
            }
            Err(Trouble::Failed(failure)) => failure,
        };
        // A device in the home whose certificate nobody has signed is known by it from now on.
        if settings.may_pin
            && failure.message.contains("certificate")
            && let Ok(seen) = pinned::seen(&settings.connector.probe().url).await
        {
            self.pin(id, &seen).await?;
            let (status, message) = Box::pin(self.try_connection(id, zone)).await?;
            let words = "its certificate was not known, and is pinned now";
            return Ok((status, format!("{message}; {words}: SHA-256 {seen}")));
        }
        Ok((stopped_status(&failure.class), failure.message))
    }

    async fn pin(&self, id: EntityId, sha256: &str) -> Result<()> {
        let fields = Map::from_iter([("pinSha256".to_owned(), sha256.into())]);
        self.engine().catalog().note_source(id, &fields).await?;
        Ok(())
    }

    /// A source that was given up is asked again at once.
    pub(super) fn resume(&self, id: EntityId) {
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
            let mut work = self.work(&source).await;
            let Some(work) = work.as_mut() else { return Err(self.obstacle(&source)) };
            (work.poll_at, work.is_wanted) = (self.now(), true);
            let next = work.turn(&self.0.asker).await;
            self.show(&source, work, next).await;
        }
        self.0.wake.notify_one();
        Ok(status_of(&source))
    }

    pub(super) fn known(&self, id: EntityId) -> Result<Arc<Source>> {
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

    pub(super) fn obstacle(&self, source: &Source) -> Error {
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
        let work = self.work(&source).await;
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
                Some(answer) => {
                    fetched = self.0.asker.prepared(settings, &stream, answer.clone()).await?;
                    &fetched
                }
                None => {
                    let asked = self.0.asker.body(settings, Purpose::Poll, &stream, window, false).await;
                    fetched = asked?;
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
        let work = self.work(&source).await;
        let Some(work) = work.as_ref() else { return Err(self.obstacle(&source)) };
        let settings = &work.settings;
        let mut replayed = Replayed::default();
        for answer in self.0.asker.raw.answers(id, from.as_microsecond(), to.as_microsecond()) {
            let stream = work.streams().iter().find(|stream| raw::file_name(stream.name) == answer.stream);
            let path = answer.path.clone();
            let text = tokio::task::spawn_blocking(move || raw::read(&path)).await;
            let text = text.map_err(|_| Error::internal("an answer could not be read"))??;
            let window = Window { from: answer.from, to: answer.to };
            let decoded = match stream.zip(serde_json::from_slice::<Value>(&text).ok()) {
                Some((stream, body)) => match self.0.asker.prepared(settings, stream, body).await {
                    Ok(body) => settings.connector.decode(stream, window, &body).ok(),
                    Err(_) => None,
                },
                None => None,
            };
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

    /// The systems that a credential sees, with the sources that poll them already, and with the devices of those that `wants` names.
    /// `metadata` is that of a source, with secrets in plain text, or with those of `like`, a source that there is.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with what is in the way.
    pub async fn discover(
        &self,
        like: Option<EntityId>,
        metadata: &Map<String, Value>,
        wants: impl Fn(&FoundSystem) -> bool,
    ) -> Result<Vec<FoundSystem>> {
        let now = time(self.now());
        let mut source = match like {
            Some(id) => {
                let source = self.engine().catalog().source_with_secrets(id).await?;
                if metadata.get("baseUrl").is_some_and(|url| source.metadata.get("baseUrl") != Some(url)) {
                    return Err(Error::invalid(
                        "metadata.baseUrl: the credentials of `like` are sent to the address of `like` only",
                    ));
                }
                source
            }
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
        let found = self.0.asker.list(&settings).await?;
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
            // An id that is none would lead to another path.
            let is_id = system.system_id.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            if is_id && wants(system) {
                match self.0.asker.devices(&settings, &system.system_id).await {
                    Ok(devices) => system.devices = devices,
                    Err(trouble) => system.devices_error = Some(Error::from(trouble).message),
                }
            }
        }
        Ok(found)
    }
}

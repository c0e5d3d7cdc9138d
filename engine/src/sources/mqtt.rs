//! An MQTT subscriber: messages of topics are [mapped](super::mapping) like answers of HTTP APIs.
//!
//! A message is acknowledged when its readings are durable, and the session outlives the connection: what is published while nobody listens
//! comes later, as long as the broker keeps it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, Publish, QoS, TlsConfiguration,
    Transport,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use url::Url;
use wattlake_catalog::EntityId;

use super::{
    address::is_public,
    failure::Secrets,
    mapping::{Mapped, Mapping},
    store::{Places, batch},
};
use crate::{Engine, Result};

/// Bytes of a message that is read.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a message that is taken from the broker, and dropped: one that was refused would come again for ever.
const PACKET_BYTES_MAX: usize = 32 << 20;
/// Messages that are stored together, and how long the first of them waits.
const TOGETHER: usize = 2000;
const GATHER: Duration = Duration::from_millis(200);
/// Messages that wait to be stored; the broker keeps further ones.
const WAITING: usize = 4000;
/// What is left of a message that is not read.
const TOO_LARGE: &[u8] = b"\0too large";
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const CONNECT_SECONDS: u64 = 10;
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
const TOPICS_MAX: usize = 64;

/// Topics and what is in their messages: a document `{"topic": ["tele", "meter", "SENSOR"], "payload": ...}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Topic {
    /// With `+` and `#`.
    topic: String,
    map: Vec<Mapping>,
}

impl Topic {
    fn matches(&self, topic: &str) -> bool {
        rumqttc::matches(topic, &self.topic)
    }
}

/// Reads topics as somebody wrote them.
///
/// # Errors
/// A text that names what is wrong.
pub(crate) fn topics(value: &Value) -> std::result::Result<Vec<Topic>, String> {
    let topics: Vec<Topic> = serde_path_to_error::deserialize(value).map_err(|error| error.to_string())?;
    if topics.is_empty() || topics.len() > TOPICS_MAX {
        return Err(format!("1 to {TOPICS_MAX} topics are expected"));
    }
    match topics.iter().find(|topic| !rumqttc::valid_filter(&topic.topic)) {
        Some(wrong) => Err(format!("`{}` is no topic filter", wrong.topic)),
        None => Ok(topics),
    }
}

/// What a source says about its broker.
#[derive(Clone, Debug)]
pub(crate) struct Broker {
    pub source: EntityId,
    /// `mqtt://HOST:PORT`, or `mqtts://` with TLS.
    pub url: Url,
    pub user: Option<String>,
    pub password: Option<String>,
    pub is_local: bool,
    pub zone: TimeZone,
    pub topics: Vec<Topic>,
    pub targets: BTreeMap<super::connector::Role, EntityId>,
    pub secrets: Secrets,
}

/// What a subscriber tells of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct News {
    pub is_connected: bool,
    pub error: Option<String>,
    /// Readings stored, and those that could not be.
    pub readings: u64,
    pub refused: u64,
}

impl Broker {
    /// Whether the address is one that may be asked.
    async fn check(&self) -> std::result::Result<(), String> {
        if self.is_local {
            return Ok(());
        }
        if self.url.scheme() != "mqtts" {
            return Err(
                "the broker is not mqtts://; one in the local network needs metadata.local = true".to_owned()
            );
        }
        let host = self.url.host_str().unwrap_or_default().to_owned();
        let found = tokio::net::lookup_host((host.as_str(), self.port()))
            .await
            .map_err(|error| format!("{host}: {error}"))?;
        match found.into_iter().find(|address| !is_public(address.ip())) {
            Some(_) => Err(format!(
                "{host} is not a public address; a broker in the local network needs metadata.local = true"
            )),
            None => Ok(()),
        }
    }

    fn port(&self) -> u16 {
        self.url.port().unwrap_or(if self.url.scheme() == "mqtts" { 8883 } else { 1883 })
    }

    fn connect(
        &self,
        client_id: String,
        is_clean: bool,
    ) -> std::result::Result<(AsyncClient, EventLoop), String> {
        let host = self.url.host_str().unwrap_or_default();
        let mut options = MqttOptions::new(client_id, host, self.port());
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(is_clean)
            .set_manual_acks(true)
            .set_max_packet_size(PACKET_BYTES_MAX, 64 << 10);
        if let Some(user) = &self.user {
            options.set_credentials(user, self.password.as_deref().unwrap_or_default());
        }
        if self.url.scheme() == "mqtts" {
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls()?))));
        }
        let (client, mut events) = AsyncClient::new(options, 128);
        let mut network = events.network_options();
        network.set_connection_timeout(CONNECT_SECONDS);
        events.set_network_options(network);
        Ok((client, events))
    }

    /// Whether the broker lets us in.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub(crate) async fn probe(&self) -> std::result::Result<(), String> {
        self.check().await?;
        let (_client, mut events) =
            self.connect(format!("wattlake-test-{}", uuid::Uuid::new_v4().simple()), true)?;
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(self.in_words(&error)),
            }
        }
    }

    fn in_words(&self, error: &ConnectionError) -> String {
        let words = match error {
            ConnectionError::ConnectionRefused(code) => format!("the broker refuses us: {code:?}"),
            ConnectionError::NetworkTimeout => "no answer in time".to_owned(),
            other => other.to_string(),
        };
        let host = self.url.host_str().unwrap_or_default();
        self.secrets.redact(&format!("MQTT broker {host}:{}: {words}", self.port()))
    }

    /// Subscribes and stores until it is dropped; tells how it goes.
    pub(crate) async fn run(self, engine: Arc<Engine>, tell: impl Fn(&News) + Send + Sync + 'static) {
        let (mut news, mut backoff) = (News::default(), BACKOFF);
        loop {
            let ended = match self.check().await {
                Ok(()) => self.listen(&engine, &mut news, &tell).await,
                Err(words) => words,
            };
            if news.is_connected {
                backoff = BACKOFF;
            }
            news.is_connected = false;
            news.error = Some(ended);
            tell(&news);
            tokio::time::sleep(backoff.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Listens until the connection ends; answers why.
    async fn listen(
        &self,
        engine: &Arc<Engine>,
        news: &mut News,
        tell: &(impl Fn(&News) + Send + Sync),
    ) -> String {
        let (client, mut events) = match self.connect(format!("wattlake-{}", self.source), false) {
            Ok(connected) => connected,
            Err(words) => return words,
        };
        let (sender, mut messages) = mpsc::channel::<Option<Publish>>(WAITING);
        let filters: Vec<_> = self.topics.iter().map(|topic| topic.topic.clone()).collect();
        let subscriber = client.clone();
        // Of its own: the connection is kept alive while readings are stored.
        let mut network = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        for filter in &filters {
                            if subscriber.subscribe(filter, QoS::AtLeastOnce).await.is_err() {
                                return None;
                            }
                        }
                        if sender.send(None).await.is_err() {
                            return None;
                        }
                    }
                    Ok(Event::Incoming(Packet::Publish(mut message))) => {
                        if message.payload.len() > MESSAGE_BYTES_MAX {
                            message.payload = TOO_LARGE.into();
                        }
                        if sender.send(Some(message)).await.is_err() {
                            return None;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => return Some(error),
                }
            }
        });
        let mut waiting: Vec<Publish> = Vec::new();
        let mut since = Instant::now();
        loop {
            let left = GATHER.saturating_sub(since.elapsed());
            let next = match waiting.is_empty() {
                true => Some(messages.recv().await),
                false => tokio::time::timeout(left, messages.recv()).await.ok(),
            };
            match next {
                Some(Some(None)) => {
                    news.is_connected = true;
                    news.error = None;
                    tell(news);
                    continue;
                }
                Some(Some(Some(message))) => {
                    if waiting.is_empty() {
                        since = Instant::now();
                    }
                    waiting.push(message);
                    if waiting.len() < TOGETHER {
                        continue;
                    }
                }
                // Those that wait are not acknowledged, and come again.
                Some(None) => {
                    return match (&mut network).await {
                        Ok(Some(error)) => self.in_words(&error),
                        _ => "the connection ended".to_owned(),
                    };
                }
                None => {}
            }
            if let Err(error) = self.store(engine, &waiting, news).await {
                news.error = Some(error.message);
                tell(news);
                tokio::time::sleep(BACKOFF).await;
                continue;
            }
            for message in waiting.drain(..) {
                if client.ack(&message).await.is_err() {
                    break;
                }
            }
            tell(news);
        }
    }

    /// Stores the readings of some messages; what is in a message that cannot be read is counted.
    async fn store(&self, engine: &Arc<Engine>, messages: &[Publish], news: &mut News) -> Result<()> {
        let now = engine.clock().now_micros();
        let mut mapped = Mapped::default();
        for message in messages {
            if message.payload == TOO_LARGE {
                news.refused += 1;
                continue;
            }
            let payload = serde_json::from_slice::<Value>(&message.payload)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&message.payload).into_owned()));
            let document =
                json!({ "topic": message.topic.split('/').collect::<Vec<_>>(), "payload": payload });
            for topic in self.topics.iter().filter(|topic| topic.matches(&message.topic)) {
                topic.map.iter().for_each(|mapping| mapping.apply(&document, &self.zone, now, &mut mapped));
            }
            // Lists of what was not found are for those who write a mapping.
            mapped.unmatched.clear();
        }
        let places = Places { source: self.source, targets: &self.targets, fleet: engine.catalog().fleet() };
        let (batch, refused) = batch(engine, &places, &mapped.points);
        let stored = batch.len() as u64;
        engine.write(batch).await?;
        news.readings += stored;
        news.refused += refused;
        metrics::counter!("wattlake_mqtt_messages_total").increment(messages.len() as u64);
        Ok(())
    }
}

/// TLS with the certificates that the system trusts.
fn tls() -> std::result::Result<tokio_rustls::rustls::ClientConfig, String> {
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_checked_and_counted() {
        let topic =
            json!({ "topic": "a/+/b", "map": [{ "values": [{ "metric": "power", "path": "$.payload" }] }] });
        assert_eq!(
            topics(&vec![topic.clone(); TOPICS_MAX].into()).map(|topics| topics.len()),
            Ok(TOPICS_MAX)
        );
        assert!(
            topics(&vec![topic.clone(); TOPICS_MAX + 1].into()).is_err_and(|words| words.contains("1 to 64"))
        );
        assert!(topics(&json!([])).is_err());
        let mut wrong = topic;
        wrong["topic"] = "a/#/b".into();
        assert!(topics(&json!([wrong])).is_err_and(|words| words.contains("a/#/b")));
    }
}

//! What was sent and what was acknowledged, and whether a server holds just that.
//!
//! A request is a group of readings with times of its own. It is written, corrected twice, deleted, written again and so on: each
//! step is a version. A writer sends the next version of a request only after an answer to the one before. So what is stored of a request
//! is one of its versions, whole, not older than the last acknowledged one and not newer than the last sent one.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::json;

use crate::server::Server;

const WRITERS: u64 = 4;
const ROWS_PER_REQUEST: u64 = 20;
/// 2020-01-01T00:00:00Z in seconds.
const EPOCH: u64 = 1_577_836_800;
/// Every fourth version is a deletion.
const VERSIONS: u32 = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Versions {
    acked: u32,
    sent: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    requests: Mutex<HashMap<u64, Versions>>,
    next: AtomicU64,
    /// Whether acknowledgements count no more.
    is_closed: AtomicBool,
}

fn is_deletion(version: u32) -> bool {
    version % VERSIONS == VERSIONS - 1
}

fn value_of(t: u64, version: u32) -> f64 {
    (t.wrapping_mul(2_654_435_761) % 1_000_003) as f64 / 4.0 + f64::from(version) * 1e6
}

fn times_of(request: u64) -> impl Iterator<Item = u64> {
    (0..ROWS_PER_REQUEST).map(move |i| EPOCH + request * ROWS_PER_REQUEST + i)
}

/// Writers that run until they are stopped; what they could not send does not matter.
pub(crate) struct Load {
    is_over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub(crate) async fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("writer");
        }
    }
}

impl Ledger {
    /// Starts writers, and somebody who asks for compactions and exports now and then.
    pub(crate) fn load(self: &Arc<Self>, server: &Server) -> Load {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for writer in 0..WRITERS {
            let (ledger, is_over) = (Arc::clone(self), Arc::clone(&is_over));
            let client = Client::of(server);
            tasks.push(tokio::spawn(async move {
                let mut rng = SmallRng::seed_from_u64(rand::random());
                let mut own: Vec<u64> = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let request = match own.len() {
                        // Often enough the same that deletions come.
                        n if n > 3 && rng.random_bool(0.4) => own[n - 1 - rng.random_range(0..n.min(40))],
                        _ => {
                            own.push(ledger.next.fetch_add(1, Ordering::Relaxed));
                            own[own.len() - 1]
                        }
                    };
                    ledger.send(&client, writer, request).await;
                }
            }));
        }
        let (client, over) = (Client::of(server), Arc::clone(&is_over));
        tasks.push(tokio::spawn(async move {
            let mut rng = SmallRng::seed_from_u64(rand::random());
            while !over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(rng.random_range(20..250))).await;
                let request = match rng.random_range(0..3) {
                    0 => client.post("/api/compact?all=true"),
                    1 => client.post("/api/compact?force=true"),
                    _ => client.post("/api/export").json(&json!({ "format": "delta" })),
                };
                let _ = request.send().await;
            }
        }));
        Load { is_over, tasks }
    }

    async fn send(&self, client: &Client, writer: u64, request: u64) {
        let version = {
            let mut requests = self.requests.lock().expect("requests");
            let versions = requests.entry(request).or_default();
            versions.sent += 1;
            versions.sent
        };
        let sent = if is_deletion(version) {
            let time = |request: u64| {
                let seconds = i64::try_from(EPOCH + request * ROWS_PER_REQUEST).expect("a time");
                jiff::Timestamp::from_second(seconds).expect("a time")
            };
            let (from, to) = (time(request), time(request + 1));
            client.delete(&format!("/api/measurements?metric=power&from={from}&to={to}")).send().await
        } else {
            let lines: Vec<_> = times_of(request)
                .map(|t| format!("power,host=w{writer} value={} {t}", value_of(t, version)))
                .collect();
            client.post("/api/v2/write?bucket=crash&precision=s").body(lines.join("\n")).send().await
        };
        // 429 while a flush is behind, and 5xx of a full disk, are no acknowledgements.
        let Ok(response) = sent else { return };
        let status = response.status().as_u16();
        if status == 400 {
            panic!("the request itself is said to be wrong: {}", response.text().await.unwrap_or_default());
        }
        if matches!(status, 200 | 204) {
            let mut requests = self.requests.lock().expect("requests");
            if !self.is_closed.load(Ordering::Acquire) {
                requests.entry(request).or_default().acked = version;
            }
        }
    }

    /// From now on acknowledgements count no more, as if nobody were there to hear them.
    pub(crate) fn close(&self) {
        let _requests = self.requests.lock().expect("requests");
        self.is_closed.store(true, Ordering::Release);
    }

    /// Takes acknowledgements again.
    pub(crate) fn reopen(&self) {
        self.is_closed.store(false, Ordering::Release);
    }

    /// Requests of which something was acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.requests.lock().expect("requests").values().filter(|versions| versions.acked > 0).count()
    }

    /// Whether these readings are what was acknowledged, and nothing that was not sent.
    pub(crate) fn check(&self, rows: &[(u64, f64)]) -> Result<(), String> {
        let mut stored: BTreeMap<u64, f64> = rows.iter().copied().collect();
        if stored.len() != rows.len() {
            return Err(format!("{} readings are there twice", rows.len() - stored.len()));
        }
        for (request, Versions { acked, sent }) in &*self.requests.lock().expect("requests") {
            let found: Vec<_> = times_of(*request).map(|t| stored.remove(&t)).collect();
            let is_version = |version: u32| {
                let is_absent = version == 0 || is_deletion(version);
                times_of(*request)
                    .zip(&found)
                    .all(|(t, value)| *value == (!is_absent).then(|| value_of(t, version)))
            };
            if !(*acked..=*sent).any(is_version) {
                return Err(format!(
                    "request {request} was acknowledged in version {acked} and sent up to {sent}; stored is {found:?}"
                ));
            }
        }
        match stored.first_key_value() {
            None => Ok(()),
            Some((t, _)) => Err(format!("{} readings that nobody sent, the first at {t}", stored.len())),
        }
    }
}

/// How to reach a server that may be gone.
struct Client {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Client {
    fn of(server: &Server) -> Self {
        Self { client: server.client.clone(), url: server.url.clone(), token: server.token.clone() }
    }

    fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    fn delete(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.delete(format!("{}{path}", self.url)).bearer_auth(&self.token)
    }
}

//! kill -9 at random moments under concurrent writes: what was acknowledged is there, once, and nothing else.
//!
//! Writers give every reading a unique time and a value made from it. After each kill the server starts by itself on what
//! it finds; then every acknowledged reading must be there with its value, none twice, each request whole or absent.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::RngExt;
use serde_json::{Value, json};

const KILLS: u32 = 50;
const WRITERS: u64 = 4;
const ROWS_PER_REQUEST: u64 = 20;
/// 2020-01-01T00:00:00Z in seconds.
const EPOCH: u64 = 1_577_836_800;

/// The binary that `tests/run` builds.
fn binary() -> PathBuf {
    let path = std::env::var_os("TEST_WATTLAKE").map(PathBuf::from).unwrap_or_else(|| {
        let exe = std::env::current_exe().expect("own path");
        exe.ancestors().nth(2).expect("target folder").join("wattlake")
    });
    assert!(path.exists(), "{} is missing; run tests/run, which builds it", path.display());
    path
}

struct Server {
    child: Child,
    url: String,
    client: reqwest::Client,
    token: String,
}

impl Server {
    async fn start(dir: &Path) -> Self {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("port").port();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.with_extension("log"))
            .expect("log");
        let child = Command::new(binary())
            .args(["serve", "--data-dir", &dir.display().to_string()])
            // Small limits, so that segments, flushes and files come often.
            .args(["--set", &format!("http.listen=127.0.0.1:{port}"), "--set", "wal.segment_bytes=64KiB"])
            .args([
                "--set",
                "flush.interval=200ms",
                "--set",
                "flush.max_bytes=256KiB",
                "--set",
                "compaction.interval=150ms",
            ])
            .stdout(Stdio::from(log.try_clone().expect("log")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("start");
        let mut server = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            client: reqwest::Client::new(),
            token: String::new(),
        };
        let started = Instant::now();
        loop {
            if let Some(status) = server.child.try_wait().expect("wait") {
                let log = std::fs::read_to_string(dir.with_extension("log")).unwrap_or_default();
                panic!("the server did not start by itself: {status}\n{log}");
            }
            if server
                .client
                .get(format!("{}/ready", server.url))
                .send()
                .await
                .is_ok_and(|r| r.status().is_success())
            {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "start-up took too long");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.token = std::fs::read_to_string(dir.join("admin-token")).expect("token").trim().to_owned();
        server
    }

    fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    async fn rows(&self) -> Vec<(u64, f64)> {
        let query = "SELECT to_unixtime(timestamp) AS t, value FROM measurements ORDER BY 1";
        let response = self
            .client
            .post(format!("{}/api/sql", self.url))
            .bearer_auth(&self.token)
            .json(&json!({ "query": query }))
            .send()
            .await
            .expect("query");
        let text = response.text().await.expect("rows");
        let rows: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no rows: {text}"));
        rows.iter()
            .map(|row| (row["t"].as_u64().expect("time"), row["value"].as_f64().expect("value")))
            .collect()
    }
}

fn value_of(n: u64) -> f64 {
    (n.wrapping_mul(2_654_435_761) % 1_000_003) as f64 / 4.0
}

/// Rows of one request: every writer has every WRITERS-th request.
fn rows_of(request: u64) -> impl Iterator<Item = u64> {
    (0..ROWS_PER_REQUEST).map(move |i| EPOCH + request * ROWS_PER_REQUEST + i)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_readings_survive_kills() {
    let folder = tempfile::TempDir::new().expect("folder");
    let dir = folder.path().join("data");
    let acked: Arc<std::sync::Mutex<Vec<u64>>> = Arc::default();
    let next = Arc::new(AtomicU64::new(0));
    let mut rng = rand::rng();
    for kill in 0..KILLS {
        let mut server = Server::start(&dir).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let (acked, next, is_over) = (Arc::clone(&acked), Arc::clone(&next), Arc::clone(&is_over));
            let (client, url, token) = (server.client.clone(), server.url.clone(), server.token.clone());
            writers.push(tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let request = next.fetch_add(1, Ordering::Relaxed);
                    let lines: Vec<_> =
                        rows_of(request).map(|t| format!("power,host=a value={} {t}", value_of(t))).collect();
                    let sent = client
                        .post(format!("{url}/api/v2/write?bucket=crash&precision=s"))
                        .bearer_auth(&token)
                        .body(lines.join("\n"))
                        .send()
                        .await;
                    // 429 while a flush is behind is no acknowledgement.
                    if sent.is_ok_and(|response| response.status().as_u16() == 204) {
                        acked.lock().expect("acked").push(request);
                    }
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..700))).await;
        server.kill();
        is_over.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.expect("writer");
        }
        if kill % 5 == 4 || kill + 1 == KILLS {
            let mut server = Server::start(&dir).await;
            check(&server, &acked, next.load(Ordering::Relaxed), kill).await;
            let first = server.rows().await;
            server.kill();
            // A second start gives the same: nothing of the recovery depends on having been done once.
            let mut server = Server::start(&dir).await;
            assert_eq!(server.rows().await, first, "after kill {kill}");
            server.kill();
        }
    }
    let total = acked.lock().expect("acked").len();
    assert!(total > 500, "only {total} requests were acknowledged: the test proves too little");
}

async fn check(server: &Server, acked: &std::sync::Mutex<Vec<u64>>, sent: u64, kill: u32) {
    let rows = server.rows().await;
    let stored: BTreeMap<u64, f64> = rows.iter().copied().collect();
    assert_eq!(stored.len(), rows.len(), "a reading is there twice after kill {kill}");
    for (t, value) in &stored {
        assert_eq!(*value, value_of(*t), "a reading changed after kill {kill}");
    }
    for request in acked.lock().expect("acked").iter() {
        for t in rows_of(*request) {
            assert!(
                stored.contains_key(&t),
                "reading {t} of acknowledged request {request} is lost after kill {kill}"
            );
        }
    }
    let mut whole = 0;
    for request in 0..sent {
        let present = rows_of(request).filter(|t| stored.contains_key(t)).count() as u64;
        assert!(
            present == 0 || present == ROWS_PER_REQUEST,
            "request {request} is half there after kill {kill}"
        );
        whole += present;
    }
    assert_eq!(whole, stored.len() as u64, "readings that nobody sent");
}

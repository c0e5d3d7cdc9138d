//! A real server process that may die.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// The binary that `tests/run` builds.
pub(crate) fn binary() -> PathBuf {
    let path = std::env::var_os("TEST_WATTLAKE").map(PathBuf::from).unwrap_or_else(|| {
        let exe = std::env::current_exe().expect("own path");
        exe.ancestors().nth(2).expect("target folder").join("wattlake")
    });
    assert!(path.exists(), "{} is missing; run tests/run, which builds it", path.display());
    path
}

/// How servers of a test are started.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub dir: PathBuf,
    /// Outside of the data directory: it outlives the disk below that.
    pub log: PathBuf,
    pub settings: Vec<String>,
    pub failpoints: String,
}

impl Options {
    /// Small limits, so that segments, flushes and files come often.
    pub(crate) fn new(dir: &Path, log: &Path) -> Self {
        let settings = [
            "wal.segment_bytes=64KiB",
            "flush.interval=200ms",
            "flush.max_bytes=256KiB",
            "compaction.interval=150ms",
            "snapshots.keep=1ms",
        ];
        Self {
            dir: dir.to_owned(),
            log: log.to_owned(),
            settings: settings.iter().map(|&text| text.to_owned()).collect(),
            failpoints: String::new(),
        }
    }

    /// As they are, with objects deleted soon after nobody names them.
    pub(crate) fn with_short_grace(mut self) -> Self {
        self.settings.extend(["snapshots.grace=1s".to_owned(), "query.timeout=1s".to_owned()]);
        self
    }

    pub(crate) fn with_failpoints(&self, failpoints: &str) -> Self {
        Self { failpoints: failpoints.to_owned(), ..self.clone() }
    }
}

/// A port below those that the system gives to outgoing connections, so that no client can take it before
/// the server does.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(89);
    loop {
        let nth = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = u16::try_from(10_000 + nth).expect("below 30,000");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) struct Server {
    child: Child,
    pub url: String,
    pub client: reqwest::Client,
    pub token: String,
}

impl Server {
    /// Starts a server and waits until it answers; `Err` with its log when it ends instead.
    pub(crate) async fn try_start(options: &Options) -> Result<Self, String> {
        let port = free_port();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&options.log).expect("log");
        let mut command = Command::new(binary());
        command.args(["serve", "--data-dir", &options.dir.display().to_string()]);
        command.args(["--set", &format!("http.listen=127.0.0.1:{port}")]);
        command.args(["--set", "postgres.listen=", "--set", "flight.listen="]);
        for setting in &options.settings {
            command.args(["--set", setting]);
        }
        if !options.failpoints.is_empty() {
            command.env("FAILPOINTS", &options.failpoints);
        }
        let child = command
            .stdout(Stdio::from(log.try_clone().expect("log")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("start");
        // A dying server may leave a request without an answer for ever.
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().expect("client");
        let url = format!("http://127.0.0.1:{port}");
        let mut server = Self { child, url, client, token: String::new() };
        let started = Instant::now();
        loop {
            if let Some(status) = server.child.try_wait().expect("wait") {
                let log = std::fs::read_to_string(&options.log).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(15).collect();
                let tail: Vec<_> = tail.into_iter().rev().collect();
                return Err(format!("the server ended: {status}\n{}", tail.join("\n")));
            }
            let ready = server.client.get(format!("{}/ready", server.url)).send().await;
            if ready.is_ok_and(|response| response.status().is_success()) {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "start-up took too long");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        server.token =
            std::fs::read_to_string(options.dir.join("admin-token")).expect("token").trim().to_owned();
        Ok(server)
    }

    pub(crate) async fn start(options: &Options) -> Self {
        match Self::try_start(options).await {
            Ok(server) => server,
            Err(message) => panic!("{message}"),
        }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("wait");
    }

    /// Asks the server to stop, as a service manager does.
    pub(crate) fn terminate(&self) {
        let sent = Command::new("kill").arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill").success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the process; `None` when it still runs after that time.
    pub(crate) async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return Some(status);
            }
            if started.elapsed() > limit {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    /// Time in seconds and value of every reading.
    pub(crate) async fn rows(&self) -> Result<Vec<(u64, f64)>, String> {
        let query = "SELECT to_unixtime(timestamp) AS t, value FROM measurements ORDER BY 1";
        let response = self.post("/api/sql").json(&json!({ "query": query })).send().await;
        let text = response.map_err(|error| format!("query: {error}"))?.text().await;
        let text = text.map_err(|error| format!("query: {error}"))?;
        let rows: Vec<Value> = serde_json::from_str(&text).map_err(|_| format!("no rows: {text}"))?;
        Ok(rows.iter().filter_map(|row| Some((row["t"].as_u64()?, row["value"].as_f64()?))).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

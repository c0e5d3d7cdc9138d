//! The running server: opening everything in order, accepting connections, stopping in order.
//!
//! Start: lock, storage, catalog, engine (recovery), tokens, listen. Stop: no new connections, running requests finish,
//! flush, close the log, close the catalog. A broken log ends the process at once with exit code 74 (WAL-4).

mod endpoint;

use std::{
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wattlake_catalog::{Catalog, NewToken, Scope};
use wattlake_config::Settings;
use wattlake_engine::{Clock, DataDir, Engine, ErrorKind, Ingest, Sources, Storage};

use self::endpoint::Endpoint;
use crate::{
    access::Gate,
    cli::Failure,
    flight,
    http::{App, router},
    postgres::{self, PostgresEndpoint},
    query::QueryService,
    tls,
};

/// How long a server that stops waits for calls that are under way; what they bring is asked for again.
const LAST_TURNS: Duration = Duration::from_secs(5);

/// Everything that a command of this process works with.
pub(crate) struct Open {
    pub engine: Arc<Engine>,
    pub ingest: Ingest,
    pub queries: Arc<QueryService>,
    pub sources: Sources,
}

/// Takes the data directory and opens what is in it.
pub(crate) async fn open(settings: &Settings) -> Result<Open, Failure> {
    let data_dir = DataDir::acquire(&settings.data_dir.0)?;
    let storage = Storage::open(settings)?;
    let key = data_dir.path().join("secrets.key");
    let catalog = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await?;
    Open::new(Engine::start(settings, data_dir, storage, Arc::new(catalog), clock()?).await?)
}

/// Where "now" comes from.
pub(crate) fn clock() -> Result<Clock, Failure> {
    #[cfg(feature = "failpoints")]
    if let Some(path) = std::env::var_os("TEST_CLOCK_FILE") {
        return Clock::file(Path::new(&path))
            .map_err(|error| Failure::io(format!("the clock of the test: {error}")));
    }
    Ok(Clock::System)
}

/// As [`open`], but a damaged log does not stop it; answers what was wrong.
pub(crate) async fn repair(settings: &Settings) -> Result<(Open, Vec<String>), Failure> {
    let data_dir = DataDir::acquire(&settings.data_dir.0)?;
    let storage = Storage::open(settings)?;
    let key = data_dir.path().join("secrets.key");
    let catalog = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await?;
    let (engine, damage) =
        Engine::repair(settings, data_dir, storage, Arc::new(catalog), Clock::System).await?;
    Ok((Open::new(engine)?, damage))
}

impl Open {
    fn new(engine: Arc<Engine>) -> Result<Self, Failure> {
        let queries = Arc::new(QueryService::new(Arc::clone(&engine))?);
        let sources = Sources::new(Arc::clone(&engine));
        Ok(Self { ingest: Ingest::new(Arc::clone(&engine)), engine, queries, sources })
    }

    /// Flushes and closes, in order.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        drop((self.queries, self.sources));
        let stopped = self.engine.stop().await;
        self.engine.catalog().close().await;
        Ok(stopped?)
    }
}

/// A server that listens.
pub(crate) struct Listening {
    pub http: Endpoint,
    pub flight: Option<Endpoint>,
    pub postgres: Option<PostgresEndpoint>,
    app: App,
}

/// The process-wide metrics recorder.
fn prometheus() -> Result<PrometheusHandle, Failure> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let handle = PrometheusBuilder::new()
        .set_buckets(&[
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        ])
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| Failure::failed(format!("cannot start metrics: {error}")))?;
    Ok(HANDLE.get_or_init(|| handle).clone())
}

/// Binds the addresses of all protocols. The first start makes an admin token.
///
/// # Errors
/// An address that is taken, one beyond loopback without any token, or a certificate that cannot be used.
pub(crate) async fn listen(
    settings: &Settings,
    open: &Open,
    requires_token: bool,
) -> Result<Listening, Failure> {
    open.queries.warm_up().await;
    if requires_token {
        create_admin_token(settings, open.engine.catalog()).await?;
    }
    let has_token = open.engine.catalog().tokens().await?.iter().any(|token| token.revoked_at.is_none());
    let is_protected = requires_token && has_token;
    let http = address("http.listen", &settings.http.listen, is_protected)?;
    let http = Endpoint::bind(
        "http.listen",
        http,
        tls::acceptor(&settings.tls, &["h2", "http/1.1"])?,
        settings.http.max_connections,
    )
    .await?;
    let flight = match settings.flight.listen.as_str() {
        "" => None,
        text => {
            let address = address("flight.listen", text, is_protected)?;
            let tls = tls::acceptor(&settings.tls, &["h2"])?;
            Some(Endpoint::bind("flight.listen", address, tls, settings.flight.max_connections).await?)
        }
    };
    let gate = Gate::new(Arc::clone(&open.engine), requires_token);
    let postgres = postgres::listen(settings, &open.queries, &gate).await?;
    let app = App {
        engine: Arc::clone(&open.engine),
        ingest: open.ingest.clone(),
        queries: Arc::clone(&open.queries),
        sources: open.sources.clone(),
        gate,
        prometheus: prometheus()?,
        started: Instant::now(),
        inflight_bytes: Arc::default(),
        imports: Arc::default(),
        tagger: Default::default(),
    };
    Ok(Listening { http, flight, postgres, app })
}

fn address(key: &str, text: &str, is_protected: bool) -> Result<SocketAddr, Failure> {
    let address: SocketAddr =
        text.parse().map_err(|_| Failure::usage(format!("{key}: `{text}` is not ADDRESS:PORT")))?;
    if !address.ip().is_loopback() && !is_protected {
        return Err(Failure::usage(format!(
            "{key}: {address} is not loopback, and without a token anybody there could read and write; make one with \
             `wattlake token create`, or listen on 127.0.0.1"
        )));
    }
    Ok(address)
}

/// Writes `admin-token` when no token was ever made, and prints it once.
async fn create_admin_token(settings: &Settings, catalog: &Catalog) -> Result<(), Failure> {
    if !catalog.tokens().await?.is_empty() {
        return Ok(());
    }
    let new = NewToken { name: "admin".into(), scopes: vec![Scope::Admin], sites: vec![] };
    let folder = &settings.data_dir.0;
    let path = folder.join("admin-token");
    let keep = |token: &str| {
        write_private(folder, &path, token).map_err(|error| {
            wattlake_catalog::Error::new(
                wattlake_catalog::ErrorKind::Unavailable,
                format!("cannot write {}: {error}", path.display()),
            )
        })
    };
    let token = catalog.create_token(&new, keep).await?;
    println!("admin token (also in {}, shown once): {token}", path.display());
    Ok(())
}

fn write_private(folder: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::File::open(folder)?.sync_all()
}

impl Listening {
    /// Serves until `stop` completes or the log breaks; then lets running requests finish.
    ///
    /// # Errors
    /// The failure of the log (exit code 74).
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), Failure> {
        let Self { http, flight, postgres, app } = self;
        let mut failed = app.engine.failed();
        let stopping = CancellationToken::new();
        let mut endpoints = JoinSet::new();
        if let Some(flight) = flight {
            endpoints.spawn(flight.serve(flight::router(&app.queries, &app.gate), stopping.clone()));
        }
        if let Some(postgres) = postgres {
            endpoints.spawn(postgres.serve(stopping.clone()));
        }
        endpoints.spawn(http.serve(router(&app), stopping.clone()));
        drop(app);
        let outcome = tokio::select! {
            () = stop => Ok(()),
            changed = failed.wait_for(Option::is_some) => {
                let message = changed.ok().and_then(|error| error.clone()).map(|error| error.message);
                Err(Failure::io(message.unwrap_or_else(|| "the log failed".into())))
            }
        };
        stopping.cancel();
        while endpoints.join_next().await.is_some() {}
        outcome
    }
}

/// Completes on SIGTERM or SIGINT.
pub(crate) async fn termination() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
}

/// Runs a server to its end: until a signal, then everything in order.
pub(crate) async fn run(
    open: Open,
    listening: Listening,
    stop: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let sources = open.sources.clone();
    let is_polling = open.engine.settings().sources.poll;
    let polling = tokio::spawn(async move {
        if is_polling {
            sources.run().await;
        }
    });
    let watcher = open.sources.clone();
    let watching = tokio::spawn(async move { watcher.watch().await });
    let served = listening.serve(stop).await;
    open.sources.stop();
    // After a failure of the log nothing is flushed: what is in memory is replayed from what is on disk.
    served?;
    let last = async { tokio::join!(polling, watching) };
    if tokio::time::timeout(LAST_TURNS, last).await.is_err() {
        tracing::warn!("sources that are still waiting for their vendors go on at the next start");
    }
    open.close().await
}

impl From<wattlake_engine::Error> for Failure {
    fn from(error: wattlake_engine::Error) -> Self {
        match error.kind {
            ErrorKind::InUse => Self::in_use(error.message),
            ErrorKind::Io | ErrorKind::StorageFull => Self::io(error.message),
            _ => Self::failed(error.message),
        }
    }
}

impl From<wattlake_catalog::Error> for Failure {
    fn from(error: wattlake_catalog::Error) -> Self {
        Self::failed(error.message)
    }
}

impl From<crate::ApiError> for Failure {
    fn from(error: crate::ApiError) -> Self {
        Self::failed(error.message)
    }
}

//! The running server: opening everything in order, accepting connections, stopping in order.
//!
//! Start: lock, storage, catalog, engine (recovery), tokens, listen. Stop: no new connections, running requests finish,
//! flush, close the log, close the catalog. A broken log ends the process at once with exit code 74 (WAL-4).

use std::{
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, sync::Semaphore};
use wattlake_catalog::{Catalog, NewToken, Scope};
use wattlake_config::Settings;
use wattlake_engine::{Clock, DataDir, Engine, ErrorKind, Ingest, Storage};

use crate::{
    cli::Failure,
    http::{App, router},
    query::QueryService,
};

/// A client has this long for its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Running requests have this long to finish when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

/// Everything that a command of this process works with.
pub(crate) struct Open {
    pub engine: Arc<Engine>,
    pub ingest: Ingest,
    pub queries: Arc<QueryService>,
}

/// Takes the data directory and opens what is in it.
pub(crate) async fn open(settings: &Settings) -> Result<Open, Failure> {
    let data_dir = DataDir::acquire(&settings.data_dir.0)?;
    let storage = Storage::open(settings)?;
    let key = data_dir.path().join("secrets.key");
    let catalog = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await?;
    let engine = Engine::start(settings, data_dir, storage, Arc::new(catalog), Clock::System).await?;
    let queries = Arc::new(QueryService::new(Arc::clone(&engine))?);
    Ok(Open { ingest: Ingest::new(Arc::clone(&engine)), engine, queries })
}

/// As [`open`], but a damaged log does not stop it; answers what was wrong.
pub(crate) async fn repair(settings: &Settings) -> Result<(Open, Vec<String>), Failure> {
    let data_dir = DataDir::acquire(&settings.data_dir.0)?;
    let storage = Storage::open(settings)?;
    let key = data_dir.path().join("secrets.key");
    let catalog = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await?;
    let (engine, damage) =
        Engine::repair(settings, data_dir, storage, Arc::new(catalog), Clock::System).await?;
    let queries = Arc::new(QueryService::new(Arc::clone(&engine))?);
    Ok((Open { ingest: Ingest::new(Arc::clone(&engine)), engine, queries }, damage))
}

impl Open {
    /// Flushes and closes, in order.
    pub(crate) async fn close(self) -> Result<(), Failure> {
        drop(self.queries);
        let stopped = self.engine.stop().await;
        self.engine.catalog().close().await;
        Ok(stopped?)
    }
}

/// A server that listens.
pub(crate) struct Listening {
    pub address: SocketAddr,
    listener: TcpListener,
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

/// Binds the HTTP address. The first start makes an admin token.
///
/// # Errors
/// An address that is taken, or one beyond loopback without any token.
pub(crate) async fn listen(
    settings: &Settings,
    open: &Open,
    requires_token: bool,
) -> Result<Listening, Failure> {
    let address: SocketAddr = settings.http.listen.parse().map_err(|_| {
        Failure::usage(format!("http.listen: `{}` is not ADDRESS:PORT", settings.http.listen))
    })?;
    if requires_token {
        create_admin_token(settings, open.engine.catalog()).await?;
    }
    let has_token = open.engine.catalog().tokens().await?.iter().any(|token| token.revoked_at.is_none());
    let is_protected = requires_token && has_token;
    if !address.ip().is_loopback() && !is_protected {
        return Err(Failure::usage(format!(
            "http.listen: {address} is not loopback, and without a token anybody there could read and write; make one \
             with `wattlake token create`, or listen on 127.0.0.1"
        )));
    }
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Failure::failed(format!("cannot listen on {address}: {error} (http.listen)")))?;
    let address = listener.local_addr().unwrap_or(address);
    let app = App {
        engine: Arc::clone(&open.engine),
        ingest: open.ingest.clone(),
        queries: Arc::clone(&open.queries),
        requires_token,
        prometheus: prometheus()?,
        started: Instant::now(),
        inflight_bytes: Arc::default(),
        imports: Arc::default(),
    };
    Ok(Listening { address, listener, app })
}

/// Writes `admin-token` when no token was ever made, and prints it once.
async fn create_admin_token(settings: &Settings, catalog: &Catalog) -> Result<(), Failure> {
    if !catalog.tokens().await?.is_empty() {
        return Ok(());
    }
    let new = NewToken { name: "admin".into(), scopes: vec![Scope::Admin], sites: vec![] };
    let token = catalog.create_token(&new).await?;
    let path = settings.data_dir.0.join("admin-token");
    write_private(&path, &token)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    println!("admin token (also in {}, shown once): {token}", path.display());
    Ok(())
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()
}

impl Listening {
    /// Serves until `stop` completes or the log breaks; then lets running requests finish.
    ///
    /// # Errors
    /// The failure of the log (exit code 74).
    pub(crate) async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), Failure> {
        let Self { listener, app, .. } = self;
        let mut failed = app.engine.failed();
        let max_connections = app.engine.settings().http.max_connections;
        let router = router(&app);
        drop(app);
        let connections = Arc::new(Semaphore::new(max_connections));
        let graceful = GracefulShutdown::new();
        tokio::pin!(stop);
        let outcome = loop {
            let permit = Arc::clone(&connections).acquire_owned();
            let accepted = async {
                let permit = permit.await;
                (listener.accept().await, permit)
            };
            tokio::select! {
                () = &mut stop => break Ok(()),
                changed = failed.wait_for(Option::is_some) => {
                    let message = changed.ok().and_then(|error| error.clone()).map(|error| error.message);
                    break Err(Failure::io(message.unwrap_or_else(|| "the log failed".into())));
                }
                (accepted, permit) = accepted => match accepted {
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        let connection = connection(&router, stream, &graceful);
                        tokio::spawn(async move {
                            connection.await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: those that are open go on.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        };
        drop(listener);
        drop(router);
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
        outcome
    }
}

/// One connection: HTTP/1 or HTTP/2, with a limit on how long headers may take.
fn connection(
    router: &Router,
    stream: tokio::net::TcpStream,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + use<> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_headers(100);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let service = TowerToHyperService::new(router.clone());
    let watcher = graceful.watcher();
    async move {
        // A client that says nothing at all is not waited for either.
        let mut first = [0];
        match tokio::time::timeout(HEADER_TIMEOUT, stream.peek(&mut first)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return,
        }
        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(served.into_owned()).await {
            tracing::debug!(%error, "connection ended");
        }
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
    // After a failure of the log nothing is flushed: what is in memory is replayed from what is on disk.
    listening.serve(stop).await?;
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

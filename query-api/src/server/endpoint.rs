//! An address where HTTP is spoken: `/api`, or gRPC.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::cli::Failure;

/// A client has this long for its request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Running requests have this long to finish when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);

pub(crate) struct Endpoint {
    pub address: SocketAddr,
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    max_connections: usize,
}

impl Endpoint {
    /// # Errors
    /// An address that is taken; `key` is the setting that names it.
    pub(super) async fn bind(
        key: &str,
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        max_connections: usize,
    ) -> Result<Self, Failure> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| Failure::failed(format!("cannot listen on {address}: {error} ({key})")))?;
        let address = listener.local_addr().unwrap_or(address);
        Ok(Self { address, listener, tls, max_connections })
    }

    /// Serves until told to stop, then lets running requests finish for a while.
    pub(super) async fn serve(self, router: Router, stop: CancellationToken) {
        let Self { listener, tls, max_connections, .. } = self;
        let connections = Arc::new(Semaphore::new(max_connections));
        let graceful = GracefulShutdown::new();
        loop {
            let permit = Arc::clone(&connections).acquire_owned();
            let accepted = async {
                let permit = permit.await;
                (listener.accept().await, permit)
            };
            tokio::select! {
                () = stop.cancelled() => break,
                (accepted, permit) = accepted => match accepted {
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        let connection = connection(&router, stream, tls.clone(), &graceful);
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
        }
        drop(listener);
        drop(router);
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::warn!("some requests did not finish in time");
        }
    }
}

/// One connection: HTTP/1 or HTTP/2, with a limit on how long headers may take.
fn connection(
    router: &Router,
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + Send + use<> {
    let router = router.clone();
    let watcher = graceful.watcher();
    async move {
        // A client that says nothing at all is not waited for either.
        let mut first = [0];
        match tokio::time::timeout(HEADER_TIMEOUT, stream.peek(&mut first)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return,
        }
        let Some(tls) = tls else { return speak(router, stream, watcher).await };
        match tokio::time::timeout(HEADER_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(router, stream, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS connection"),
            Err(_) => {}
        }
    }
}

async fn speak(
    router: Router,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_headers(100);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(64)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10));
    let service = TowerToHyperService::new(router);
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(served.into_owned()).await {
        tracing::debug!(%error, "connection ended");
    }
}

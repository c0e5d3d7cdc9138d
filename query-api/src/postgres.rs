//! The Postgres wire protocol: psql, drivers and BI tools ask the same SQL with the same tokens.
//!
//! The password is a token; the user name is free. Where there is a certificate nothing but TLS is spoken, and without one
//! the server listens on loopback only. Everything is read-only: transactions are accepted, and a repeatable-read one sees
//! one state of the archive. `SET` reaches a few settings of the connection, never the engine.

mod backend;
mod commands;
mod connection;
mod copy;
mod cursors;
mod errors;
mod handler;
mod session;
mod statements;
mod texts;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use pgwire::messages::startup::SecretKey;
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use wattlake_config::{PostgresWire, Settings};

use self::backend::{Backend, Here};
use crate::{access::Gate, cli::Failure, query::QueryService, tls};

/// Connections have this long to finish their query when the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What all connections share.
struct Server {
    backend: Arc<dyn Backend>,
    settings: PostgresWire,
    tls: Option<TlsAcceptor>,
    /// How to stop the query of a connection.
    running: Mutex<HashMap<ConnectionKey, Weak<Notify>>>,
}

impl Server {
    fn cancel(&self, pid: i32, secret: &SecretKey) {
        let running = self.running.lock().get(&key(pid, secret)).and_then(Weak::upgrade);
        if let Some(running) = running {
            running.notify_waiters();
        }
    }
}

/// What a client must know to cancel a query: process number and secret.
type ConnectionKey = (i32, Vec<u8>);

fn key(pid: i32, secret: &SecretKey) -> ConnectionKey {
    (pid, secret.to_bytes().to_vec())
}

/// An endpoint that listens.
pub(crate) struct PostgresEndpoint {
    pub address: SocketAddr,
    listener: TcpListener,
    server: Arc<Server>,
}

/// Binds the address of the settings; `None` when it is switched off.
///
/// # Errors
/// An address that is taken, a certificate that cannot be used, or an address beyond loopback without one.
pub(crate) async fn listen(
    settings: &Settings,
    queries: &Arc<QueryService>,
    gate: &Gate,
) -> Result<Option<PostgresEndpoint>, Failure> {
    if settings.postgres.listen.is_empty() {
        return Ok(None);
    }
    let address: SocketAddr = settings.postgres.listen.parse().map_err(|_| {
        Failure::usage(format!("postgres.listen: `{}` is not ADDRESS:PORT", settings.postgres.listen))
    })?;
    let tls = tls::acceptor(&settings.tls, &["postgresql"])?;
    if !address.ip().is_loopback() && tls.is_none() {
        return Err(Failure::usage(format!(
            "postgres.listen: {address} is not loopback, and passwords would go over the network in clear text; set \
             tls.cert and tls.key, or listen on 127.0.0.1"
        )));
    }
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let message = format!("cannot listen on {address}: {error} (postgres.listen; empty switches it off)");
        Failure::failed(message)
    })?;
    let address = listener.local_addr().unwrap_or(address);
    let server = Server {
        backend: Arc::new(Here { queries: Arc::clone(queries), gate: gate.clone() }),
        settings: settings.postgres.clone(),
        tls,
        running: Mutex::default(),
    };
    Ok(Some(PostgresEndpoint { address, listener, server: Arc::new(server) }))
}

impl PostgresEndpoint {
    /// Serves until told to stop, then lets running queries finish for a while.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        let Self { listener, server, .. } = self;
        let places = Arc::new(Semaphore::new(server.settings.max_connections));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let place = Arc::clone(&places).try_acquire_owned().ok();
                        connections.spawn(connection::serve(Arc::clone(&server), stream, place, stop.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        drop(listener);
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, all).await;
    }
}

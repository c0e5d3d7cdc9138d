//! One connection, from its first byte to its last.

use std::{
    os::fd::AsFd,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, SinkExt, StreamExt};
use pgwire::{
    api::{ClientInfo, NoopHandler, PgWireConnectionState},
    error::{ErrorInfo, PgWireError},
    messages::{PgWireBackendMessage, PgWireFrontendMessage},
    tokio::server::{MaybeTls, PgWireMessageServerCodec, negotiate_tls, process_error, process_message},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::{
    codec::{Framed, FramedParts},
    sync::CancellationToken,
};

use super::{
    Server,
    errors::fatal,
    handler::{Canceller, Handler},
    session::Session,
    statements::Prepared,
};

/// From the first byte to a password that is right.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a repeatable-read transaction may ask nothing: it keeps a state of the archive, memory included.
const SNAPSHOT_IDLE: Duration = Duration::from_secs(60);
/// How often a client is looked after while its query runs.
const GONE_CHECK: Duration = Duration::from_millis(500);
/// Bytes of one message: a query of the largest text and its parameters.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

type Socket = Framed<Metered, PgWireMessageServerCodec<Prepared>>;

/// Serves a connection that has a place, and tells another one that there is none.
pub(super) async fn serve(
    server: Arc<Server>,
    stream: TcpStream,
    place: Option<OwnedSemaphorePermit>,
    stop: CancellationToken,
) {
    // A second handle of the same socket tells when the client is gone, while the first one is busy with its query.
    let Ok(watched) = stream.as_fd().try_clone_to_owned().map(std::net::TcpStream::from) else { return };
    let Ok(watched) = TcpStream::from_std(watched) else { return };
    let session = Arc::new(Session::new(Arc::clone(&server)));
    let greeted = timeout(STARTUP_TIMEOUT, greet(&server, stream, place.is_some())).await;
    let Ok(Ok(Some(mut socket))) = greeted else { return };
    // The library reads some malformed messages beyond their end, and panics.
    match AssertUnwindSafe(converse(&session, &mut socket, &watched, stop)).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection ended"),
        Err(_) => say_last(&mut socket, fatal("08P01", "the message cannot be read")).await,
    }
    server.running.lock().retain(|_, running| running.strong_count() > 0);
    metrics::counter!("wattlake_postgres_connections_total").increment(1);
    drop(place);
}

/// Negotiates encryption; `None` when the client was told that it is not served.
async fn greet(server: &Server, stream: TcpStream, has_place: bool) -> std::io::Result<Option<Socket>> {
    let Some(negotiated) = negotiate_tls::<Prepared>(stream, server.tls.clone()).await? else {
        return Ok(None);
    };
    let old = negotiated.into_parts();
    let mut parts = FramedParts::new(Metered { stream: old.io, unread: 0 }, old.codec);
    (parts.read_buf, parts.write_buf) = (old.read_buf, old.write_buf);
    let mut socket = Framed::from_parts(parts);
    let refusal = if server.tls.is_some() && !socket.is_secure() {
        fatal("28000", "this server speaks TLS only; connect with sslmode=require")
    } else if has_place {
        return Ok(Some(socket));
    } else {
        fatal("53300", "too many connections (postgres.max_connections)")
    };
    say_last(&mut socket, refusal).await;
    Ok(None)
}

async fn say_last(socket: &mut Socket, error: PgWireError) {
    let message = PgWireBackendMessage::ErrorResponse(ErrorInfo::from(error).into());
    if socket.send(message).await.is_ok() {
        let _ = socket.close().await;
    }
}

/// Answers messages until there are no more.
async fn converse(
    session: &Arc<Session>,
    socket: &mut Socket,
    watched: &TcpStream,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let handler = Arc::new(Handler::new(Arc::clone(session)));
    let (copy, canceller) = (Arc::new(NoopHandler), Arc::new(Canceller(Arc::clone(&session.server))));
    let started = tokio::time::Instant::now();
    loop {
        let is_starting = matches!(
            socket.state(),
            PgWireConnectionState::AwaitingStartup | PgWireConnectionState::AuthenticationInProgress
        );
        let idle = session.server.settings.idle_timeout.0;
        let (wait, code, why) = if is_starting {
            (STARTUP_TIMEOUT.saturating_sub(started.elapsed()), "08006", "nobody logged in")
        } else if session.keeps_snapshot() {
            (SNAPSHOT_IDLE.min(idle), "25P03", "the transaction asked nothing for a minute")
        } else {
            (idle, "57P05", "the connection was idle (postgres.idle_timeout)")
        };
        let next = tokio::select! {
            next = timeout(wait, socket.next()) => next,
            () = stop.cancelled() => {
                say_last(socket, fatal("57P01", "the server is stopping")).await;
                return Ok(());
            }
        };
        let message = match next {
            Err(_) => {
                say_last(socket, fatal(code, why)).await;
                return Ok(());
            }
            Ok(None | Some(Ok(PgWireFrontendMessage::Terminate(_)))) => return Ok(()),
            Ok(Some(Err(error))) => {
                say_last(socket, fatal("08P01", error.to_string())).await;
                return Ok(());
            }
            Ok(Some(Ok(message))) => message,
        };
        socket.get_mut().unread = 0;
        let waits_for_sync = message.is_extended_query();
        let answered = tokio::select! {
            answered = process_message(
                message,
                socket,
                Arc::clone(&handler),
                Arc::clone(&handler),
                Arc::clone(&handler),
                Arc::clone(&copy),
                Arc::clone(&canceller),
            ) => answered,
            () = session.cancelled.notified() => Err(PgWireError::QueryCanceled),
            () = gone(watched) => return Ok(()),
        };
        if let Err(error) = answered {
            let error = ErrorInfo::from(error);
            // The library would go on with the next message, as if the client had logged in.
            let is_last = error.is_fatal();
            process_error(socket, PgWireError::UserError(Box::new(error)), waits_for_sync).await?;
            if is_last {
                return Ok(());
            }
        }
    }
}

/// Completes when the client has closed its side.
async fn gone(stream: &TcpStream) {
    loop {
        tokio::time::sleep(GONE_CHECK).await;
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {}
            _ => return,
        }
    }
}

/// A stream that gives up when a message grows too long: the protocol allows for a gigabyte, collected before it is
/// looked at.
pub(super) struct Metered {
    stream: MaybeTls,
    /// Bytes since the last whole message.
    unread: usize,
}

impl AsyncRead for Metered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if this.unread > MESSAGE_BYTES_MAX {
            let message = format!("a message has more than {MESSAGE_BYTES_MAX} bytes");
            return Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message)));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.unread += buf.filled().len() - before;
        read
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

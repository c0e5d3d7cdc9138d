//! Arrow Flight SQL: the same SQL and the same tokens, answers as Arrow.
//!
//! Every call carries a token in the header `authorization: Bearer TOKEN`; a handshake with user name and password (the
//! token) answers that header, for clients that ask for it. Nothing is written through this protocol.

mod metadata;
mod service;
mod statements;

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightServiceServer;
use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::Response,
};
use tonic::{Status, body::Body, service::Routes};
use wattlake_catalog::Scope;

use self::service::Service;
use crate::{
    access::Gate,
    error::{ApiError, Kind},
    http::presented_token,
    query::QueryService,
};

/// Largest message of a client: a statement and its parameters.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The service behind its doorkeeper.
pub(crate) fn router(queries: &Arc<QueryService>, gate: &Gate) -> Router {
    let service = Service::new(Arc::clone(queries));
    let server = FlightServiceServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let gate = gate.clone();
    Routes::new(server)
        .into_axum_router()
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let gate = gate.clone();
            async move { authorize(gate, request, next).await }
        }))
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(|_| {
            metrics::counter!("wattlake_panics_total").increment(1);
            refusal(&Status::internal("the request failed unexpectedly; the server's log says more"))
        }))
}

/// Checks the token of every call, a handshake's included.
async fn authorize(gate: Gate, mut request: Request, next: Next) -> Response {
    let token = presented_token(request.headers());
    match gate.admit(token.as_deref(), Scope::Read).await {
        Ok(access) => {
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(error) => refusal(&to_status(error)),
    }
}

fn refusal(status: &Status) -> Response {
    status.clone().into_http::<Body>().map(axum::body::Body::new)
}

fn to_status(error: ApiError) -> Status {
    let message = error.message;
    match error.kind {
        Kind::Invalid => Status::invalid_argument(message),
        Kind::Unauthorized => Status::unauthenticated(message),
        Kind::Forbidden => Status::permission_denied(message),
        Kind::NotFound => Status::not_found(message),
        Kind::Conflict => Status::failed_precondition(message),
        Kind::TooLarge | Kind::Unprocessable | Kind::Overloaded | Kind::InsufficientStorage => {
            Status::resource_exhausted(message)
        }
        Kind::TimedOut => Status::deadline_exceeded(message),
        Kind::Unavailable => Status::unavailable(message),
        Kind::Internal => {
            tracing::error!(error = %message, "query failed");
            Status::internal(message)
        }
    }
}

//! Everything a user talks to: SQL and rollups over the engine's view, the HTTP interface, and the command line.
//!
//! [`query`] is the one service that answers questions; HTTP, Postgres wire and the command line only translate. Queries run on a
//! runtime of their own, so that they never take a thread from ingest.

mod access;
pub mod cli;
mod error;
#[cfg(test)]
mod fixture;
mod flight;
mod http;
mod postgres;
mod query;
mod rollup;
mod server;
mod simulator;
mod sql;
mod time;
mod tls;

pub use error::{ApiError, Kind};
pub use query::{QueryService, SqlRequest};

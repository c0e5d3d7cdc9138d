//! Errors as clients of Postgres know them, by SQLSTATE.

use pgwire::error::{ErrorInfo, PgWireError};

use crate::error::{ApiError, Kind};

pub(super) fn error(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), code.to_owned(), message.into())))
}

/// One after which the connection ends.
pub(super) fn fatal(code: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("FATAL".to_owned(), code.to_owned(), message.into())))
}

impl From<ApiError> for PgWireError {
    fn from(failed: ApiError) -> Self {
        if failed.kind == Kind::Internal {
            tracing::error!(error = %failed.message, "query failed");
        }
        error(sqlstate(&failed), failed.message)
    }
}

fn sqlstate(error: &ApiError) -> &'static str {
    let message = &error.message;
    match error.kind {
        Kind::Invalid if message.contains("SQL syntax") => "42601",
        Kind::Invalid if message.contains("table '") && message.contains("not found") => "42P01",
        Kind::Invalid if message.contains("No field named") => "42703",
        Kind::Invalid if message.contains("Invalid function") => "42883",
        Kind::Invalid => "42000",
        Kind::Unauthorized => "28P01",
        Kind::Forbidden => "42501",
        Kind::NotFound => "42704",
        Kind::Conflict => "55000",
        Kind::TooLarge | Kind::Unprocessable => "53400",
        Kind::TimedOut => "57014",
        Kind::Overloaded => "53300",
        Kind::Internal => "XX000",
        Kind::Unavailable => "57P03",
        Kind::InsufficientStorage => "53100",
    }
}

use std::fmt;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong; change it.
    Invalid,
    NotFound,
    /// The request contradicts what is stored.
    Conflict,
    /// The base of a commit changed; recompute and try again.
    Stale,
    /// The database cannot be reached now; try again later.
    Unavailable,
    /// A bug or a broken database; a human is needed.
    Internal,
}

/// A catalog failure.
#[derive(Debug)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

/// Whether a database's error code means that trying again later may help.
fn passes_by_itself(code: &str) -> bool {
    // Postgres: classes of connections, resources, operators and rollbacks; five characters.
    if code.len() == 5 {
        return ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class));
    }
    // SQLite: BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN, whatever their extended form says.
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14))
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let (kind, message) = match &error {
            sqlx::Error::Database(db) if db.is_unique_violation() => {
                (ErrorKind::Conflict, format!("already exists: {}", db.message()))
            }
            sqlx::Error::Database(db) if db.is_foreign_key_violation() => {
                (ErrorKind::Conflict, format!("still referenced, or refers to nothing: {}", db.message()))
            }
            sqlx::Error::Database(db) if db.code().is_some_and(|code| passes_by_itself(&code)) => {
                (ErrorKind::Unavailable, format!("catalog database is not available: {}", db.message()))
            }
            sqlx::Error::Database(db) => (ErrorKind::Internal, format!("catalog database: {}", db.message())),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            // A connection that broke off in the middle of a message.
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => {
                (ErrorKind::Unavailable, format!("catalog database is not available: {error}"))
            }
            _ => (ErrorKind::Internal, format!("catalog database: {error}")),
        };
        Self { kind, message, source: Some(Box::new(error)) }
    }
}

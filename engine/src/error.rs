use std::fmt;

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong; change it.
    Invalid,
    NotFound,
    /// The request contradicts what is stored.
    Conflict,
    /// A body is larger than the limit.
    TooLarge,
    /// Memory or queue is full; try again later.
    Overloaded,
    /// A component is away (catalog, object store) or the engine is stopping; try again later.
    Unavailable,
    /// The disk is full.
    StorageFull,
    /// Stored data is damaged; a human is needed.
    Corrupt,
    /// The data directory belongs to another process.
    InUse,
    /// Reading or writing failed; the process stops taking writes.
    Io,
    Internal,
}

/// An engine failure.
#[derive(Clone, Debug)]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An I/O failure on a path.
    pub(crate) fn io(what: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::StorageFull,
            std::io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Unavailable,
            _ => ErrorKind::Io,
        };
        Self::new(kind, format!("cannot {what} {}: {error}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<wattlake_catalog::Error> for Error {
    fn from(error: wattlake_catalog::Error) -> Self {
        use wattlake_catalog::ErrorKind as Catalog;
        let kind = match error.kind {
            Catalog::Invalid => ErrorKind::Invalid,
            Catalog::NotFound => ErrorKind::NotFound,
            Catalog::Conflict => ErrorKind::Conflict,
            // Trying again helps: the newest state has been loaded by then.
            Catalog::Stale | Catalog::Unavailable => ErrorKind::Unavailable,
            Catalog::Internal => ErrorKind::Internal,
        };
        Self::new(kind, error.message)
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        match &error {
            // The text of other variants may hold addresses; only the path of the object is told.
            object_store::Error::NotFound { path, .. } => {
                Self::corrupt(format!("object {path} is named by the manifest but missing in the storage"))
            }
            _ => Self::new(ErrorKind::Unavailable, format!("object storage: {error}")),
        }
    }
}

impl From<parquet::errors::ParquetError> for Error {
    fn from(error: parquet::errors::ParquetError) -> Self {
        Self::corrupt(format!("parquet: {error}"))
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::internal(format!("arrow: {error}"))
    }
}

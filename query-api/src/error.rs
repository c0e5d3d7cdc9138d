//! The one public error: a kind that tells the caller what to do, and a message that names what is wrong.

use std::fmt;

use datafusion::error::DataFusionError;

/// What a caller can do about an [`ApiError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Invalid,
    Unauthorized,
    Forbidden,
    NotFound,
    Conflict,
    TooLarge,
    Unprocessable,
    TimedOut,
    Overloaded,
    Internal,
    Unavailable,
    InsufficientStorage,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::TooLarge => "too_large",
            // A query that takes too long is one that cannot be answered within the limits.
            Self::Unprocessable | Self::TimedOut => "unprocessable",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::InsufficientStorage => "insufficient_storage",
        }
    }

    /// The HTTP status of the kind.
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Unprocessable | Self::TimedOut => 422,
            Self::Overloaded => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::InsufficientStorage => 507,
        }
    }
}

/// A failed request.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub kind: Kind,
    pub message: String,
    pub details: Vec<serde_json::Value>,
}

pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), details: Vec::new() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl From<wattlake_catalog::Error> for ApiError {
    fn from(error: wattlake_catalog::Error) -> Self {
        use wattlake_catalog::ErrorKind as Catalog;
        let kind = match error.kind {
            Catalog::Invalid => Kind::Invalid,
            Catalog::NotFound => Kind::NotFound,
            Catalog::Conflict | Catalog::Stale => Kind::Conflict,
            Catalog::Unavailable => Kind::Unavailable,
            Catalog::Internal => Kind::Internal,
        };
        Self::new(kind, error.message)
    }
}

impl From<wattlake_engine::Error> for ApiError {
    fn from(error: wattlake_engine::Error) -> Self {
        use wattlake_engine::ErrorKind as Engine;
        let kind = match error.kind {
            Engine::Invalid => Kind::Invalid,
            Engine::NotFound => Kind::NotFound,
            Engine::Conflict | Engine::InUse => Kind::Conflict,
            Engine::TooLarge => Kind::TooLarge,
            Engine::Overloaded => Kind::Overloaded,
            Engine::Unavailable => Kind::Unavailable,
            Engine::StorageFull => Kind::InsufficientStorage,
            Engine::Corrupt | Engine::Io | Engine::Internal => Kind::Internal,
        };
        Self::new(kind, error.message)
    }
}

/// How errors of an object store begin; reading a footer keeps only their text.
const STORE_AWAY: &str = "Generic archive error: object storage";

impl From<DataFusionError> for ApiError {
    fn from(error: DataFusionError) -> Self {
        // Errors of our own tables travel inside DataFusion's.
        if let DataFusionError::External(inner) = error.find_root()
            && let Some(api) = inner.downcast_ref::<Self>()
        {
            return api.clone();
        }
        // So do those of reading files.
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(inner) = cause {
            if let Some(engine) = inner.downcast_ref::<wattlake_engine::Error>() {
                return engine.clone().into();
            }
            cause = inner.source();
        }
        let message = error.strip_backtrace();
        if message.contains(STORE_AWAY) {
            return Self::new(Kind::Unavailable, message);
        }
        let kind = match error.find_root() {
            // Patterns are compiled when they are used; there is no type of the library in reach.
            DataFusionError::External(inner) if inner.to_string().contains("regex") => Kind::Invalid,
            // Filters are evaluated while files are read; what they cannot compute is no fault of a file.
            DataFusionError::ParquetError(inner)
                if inner.to_string().contains("evaluating filter predicate") =>
            {
                Kind::Invalid
            }
            DataFusionError::ResourcesExhausted(_) => {
                let message = format!("the query needs more memory than query.memory allows: {message}");
                return Self::new(Kind::Unprocessable, message);
            }
            DataFusionError::SQL(..)
            | DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..)
            | DataFusionError::NotImplemented(_)
            | DataFusionError::Execution(_)
            | DataFusionError::ArrowError(..)
            | DataFusionError::Diagnostic(..) => Kind::Invalid,
            DataFusionError::Configuration(_)
            | DataFusionError::External(_)
            | DataFusionError::ParquetError(_)
            | DataFusionError::ObjectStore(_)
            | DataFusionError::IoError(_)
            | DataFusionError::Internal(_)
            | DataFusionError::ExecutionJoin(_)
            | DataFusionError::Substrait(_)
            | DataFusionError::Context(..)
            | DataFusionError::Shared(_)
            | DataFusionError::Collection(_)
            | DataFusionError::Ffi(_) => Kind::Internal,
            #[allow(unreachable_patterns, reason = "variants that other features of DataFusion add")]
            _ => Kind::Internal,
        };
        Self::new(kind, message)
    }
}

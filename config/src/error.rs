use std::path::PathBuf;

/// Why settings could not be loaded. Every variant names the place and what would be valid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read settings file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: not valid TOML: {message}")]
    Syntax { origin: String, message: String },
    #[error("{origin}: unknown setting `{key}`; did you mean `{nearest}`?")]
    UnknownKey { origin: String, key: String, nearest: String },
    #[error("{origin}: `{text}` is not a setting; write key.path=value")]
    NotAnAssignment { origin: String, text: String },
    #[error("{key}: {message}")]
    Invalid { key: String, message: String },
}

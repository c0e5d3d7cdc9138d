//! Structured logs on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use wattlake_config::{Log, LogFormat};

use super::Failure;

/// Starts logging as the settings say; `quiet` keeps only warnings, for short commands.
pub(super) fn init(log: &Log, quiet: bool) -> Result<(), Failure> {
    let level = if quiet && log == &Log::default() { "warn" } else { log.level.as_str() };
    let filter = EnvFilter::try_new(level).map_err(|error| {
        Failure::usage(format!("log.level: `{level}` is not a level such as info: {error}"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Failure::failed(format!("cannot start logging: {error}")))
}

//! The command line. One verb, one file; exit codes: 0 ok, 1 failed, 2 usage or configuration, 73 data directory in use,
//! 74 I/O error.

mod backfill;
mod backup;
mod compact;
mod config;
mod demo;
mod discover;
mod dry_run;
mod export;
mod gaps;
mod import;
mod logging;
mod remote;
mod replay;
mod serve;
mod simulate;
mod snapshot;
mod sql;
mod status;
mod token;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use wattlake_config::{Layers, Settings};
use wattlake_engine::jq;

/// A time-series archive for energy fleets: durable ingest, open Parquet tables, SQL and rollups.
#[derive(Debug, Parser)]
#[command(name = "wattlake", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

const EXAMPLES: &str = "Examples:
  wattlake demo                                        a running fleet to play with
  wattlake serve --data-dir /var/lib/wattlake          the server
  wattlake import readings.csv --map mapping.toml      bulk import
  wattlake sql \"SELECT metric, count(*) FROM measurements GROUP BY metric\"";

/// Flags of every command.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Settings file [default: wattlake.toml if present]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory [default: ./wattlake-data]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Sets one setting, for example --set flush.interval=1m; may be repeated
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    assignments: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a complete system with a small fleet, 30 days of history and live readings
    Demo(demo::DemoArgs),
    /// Runs the server
    Serve,
    /// Asks a question in SQL
    Sql(sql::SqlArgs),
    /// Imports files in bulk
    Import(import::ImportArgs),
    /// Merges files, applies retention and expires old snapshots, now
    Compact(compact::CompactArgs),
    /// Checks that the archive is what the catalog says
    Verify(verify::VerifyArgs),
    /// Keeps what is whole of a damaged log, and sets the rest aside
    Repair,
    /// Copies the archive to a folder, while a server writes
    Backup(backup::BackupArgs),
    /// Writes the archive's log as another table format, for readers that know it
    Export(export::ExportArgs),
    /// Makes a lost catalog anew from the storage
    #[command(
        after_help = "Needs the storage with its journal, which a server keeps beside the files, and what is left of the
data directory: log and secrets.key. A catalog that is damaged is moved away first.

Example:
  mv data/catalog.db data/catalog.broken
  wattlake rebuild-catalog --data-dir data"
    )]
    RebuildCatalog,
    /// Puts a backup in place of an empty data directory
    Restore(backup::RestoreArgs),
    /// Keeps states of the archive under a name
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Fetches the history of an energy source from its vendor
    Backfill(backfill::BackfillArgs),
    /// Lists the systems that a vendor's credential sees, and creates sources for them
    Discover(discover::DiscoverArgs),
    /// Shows what a poll of an energy source would store, and what its configuration misses
    DryRun(dry_run::DryRunArgs),
    /// Decodes kept answers of a vendor again
    Replay(replay::ReplayArgs),
    /// Lists times without readings where the cadence expects some
    Gaps(gaps::GapsArgs),
    /// Answers as vendor APIs do, to try things out
    Simulate(simulate::SimulateArgs),
    /// Shows what the server or the data directory holds
    Status(status::StatusArgs),
    /// Makes, lists and revokes access tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Checks and shows the settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Runs a program of jq for an energy source, bounded
    #[command(name = jq::COMMAND, hide = true)]
    Jq,
}

/// Why a command ended, and the exit code for it.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The same failure with something added to its message.
    fn with(mut self, more: &str) -> Self {
        self.message += more;
        self
    }

    fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    pub(crate) fn in_use(message: impl Into<String>) -> Self {
        Self { code: 73, message: message.into() }
    }

    pub(crate) fn io(message: impl Into<String>) -> Self {
        Self { code: 74, message: message.into() }
    }

    fn is_in_use(&self) -> bool {
        self.code == 73
    }
}

impl From<wattlake_config::ConfigError> for Failure {
    fn from(error: wattlake_config::ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl Common {
    /// The settings of all layers.
    fn settings(&self) -> Result<Settings, Failure> {
        let default_file = PathBuf::from("wattlake.toml");
        let mut assignments = self.assignments.clone();
        if let Some(dir) = &self.data_dir {
            assignments.push(format!("data_dir={}", dir.display()));
        }
        let layers = Layers {
            file: self.config.clone().or_else(|| default_file.exists().then_some(default_file)),
            environment: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            assignments,
        };
        Ok(layers.load()?)
    }
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::Jq) {
        return ExitCode::from(jq::run_command());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("wattlake: cannot start: {error}");
            return ExitCode::from(74);
        }
    };
    let outcome = runtime.block_on(run(cli));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("wattlake: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { command, common } = cli;
    // Futures of whole commands are large; they live on the heap.
    match command {
        Command::Demo(args) => Box::pin(demo::run(&common, args)).await,
        Command::Serve => Box::pin(serve::run(&common)).await,
        Command::Sql(args) => Box::pin(sql::run(&common, args)).await,
        Command::Import(args) => Box::pin(import::run(&common, args)).await,
        Command::Compact(args) => Box::pin(compact::run(&common, args)).await,
        Command::Verify(args) => Box::pin(verify::run(&common, args)).await,
        Command::Repair => Box::pin(backup::repair(&common)).await,
        Command::Backup(args) => Box::pin(backup::backup(&common, args)).await,
        Command::Export(args) => Box::pin(export::run(&common, args)).await,
        Command::RebuildCatalog => Box::pin(backup::rebuild_catalog(&common)).await,
        Command::Restore(args) => Box::pin(backup::restore(&common, args)).await,
        Command::Snapshot(command) => Box::pin(snapshot::run(&common, command)).await,
        Command::Backfill(args) => Box::pin(backfill::run(&common, args)).await,
        Command::Discover(args) => Box::pin(discover::run(&common, args)).await,
        Command::DryRun(args) => Box::pin(dry_run::run(&common, args)).await,
        Command::Replay(args) => Box::pin(replay::run(&common, args)).await,
        Command::Gaps(args) => Box::pin(gaps::run(&common, args)).await,
        Command::Simulate(args) => Box::pin(simulate::run(&common, args)).await,
        Command::Status(args) => Box::pin(status::run(&common, args)).await,
        Command::Token(command) => Box::pin(token::run(&common, command)).await,
        Command::Config(command) => config::run(&common, &command),
        // It has no need of a runtime.
        Command::Jq => Ok(()),
    }
}

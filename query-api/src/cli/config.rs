//! `wattlake config`.

use clap::Subcommand;

use super::{Common, Failure};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Checks the settings of all layers and says what is wrong
    Check,
    /// Prints the settings in force as TOML, secrets masked
    Print,
}

pub(super) fn run(common: &Common, command: &ConfigCommand) -> Result<(), Failure> {
    let settings = common.settings()?;
    match command {
        ConfigCommand::Check => println!("the settings are valid"),
        ConfigCommand::Print => print!("{}", settings.to_redacted_toml()),
    }
    Ok(())
}

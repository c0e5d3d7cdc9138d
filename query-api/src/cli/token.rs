//! `wattlake token`: works on the catalog directly, also while a server runs; the server knows within two seconds.

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    util::pretty::pretty_format_batches,
};
use clap::Subcommand;
use std::sync::Arc;
use wattlake_catalog::{Catalog, NewToken, Token};
use wattlake_engine::Storage;

use super::{Common, Failure, logging};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Makes a token and prints it, for the only time
    #[command(after_help = "Example:\n  wattlake token create --name grafana --scope read")]
    Create {
        /// What the token is for
        #[arg(long)]
        name: String,
        /// read, write or admin; may be repeated
        #[arg(long = "scope", required = true)]
        scopes: Vec<String>,
        /// Limits the token to a site, by id; may be repeated
        #[arg(long = "site")]
        sites: Vec<String>,
    },
    /// Lists all tokens, without their secrets
    List {
        /// JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Makes a token useless
    Revoke {
        /// The id that `token list` shows
        id: String,
    },
}

pub(super) async fn run(common: &Common, command: TokenCommand) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    std::fs::create_dir_all(&settings.data_dir.0)
        .map_err(|error| Failure::io(format!("cannot create {}: {error}", settings.data_dir.0.display())))?;
    let storage = Storage::open(&settings)?;
    let key = settings.data_dir.0.join("secrets.key");
    let catalog = Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await?;
    match command {
        TokenCommand::Create { name, scopes, sites } => {
            let scopes = scopes.iter().map(|s| s.parse()).collect::<Result<_, _>>();
            let sites = sites.iter().map(|s| s.parse()).collect::<Result<_, _>>();
            let usage = |error: wattlake_catalog::Error| Failure::usage(error.message);
            let new = NewToken { name, scopes: scopes.map_err(usage)?, sites: sites.map_err(usage)? };
            println!("{}", catalog.create_token(&new, |_| Ok(())).await?);
        }
        TokenCommand::List { json } => print_tokens(&catalog.tokens().await?, json)?,
        TokenCommand::Revoke { id } => {
            catalog.revoke_token(&id).await?;
            println!("revoked {id}");
        }
    }
    Ok(())
}

fn print_tokens(tokens: &[Token], json: bool) -> Result<(), Failure> {
    let failed = |error: String| Failure::failed(format!("cannot print the tokens: {error}"));
    if json {
        println!("{}", serde_json::to_string_pretty(tokens).map_err(|error| failed(error.to_string()))?);
        return Ok(());
    }
    let column = |value: &dyn Fn(&Token) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(tokens.iter().map(value)))
    };
    let join =
        |parts: Vec<String>, none: &str| if parts.is_empty() { none.to_owned() } else { parts.join(",") };
    let table = RecordBatch::try_from_iter([
        ("id", column(&|t| t.id.clone())),
        ("name", column(&|t| t.name.clone())),
        ("scopes", column(&|t| join(t.scopes.iter().map(ToString::to_string).collect(), ""))),
        ("sites", column(&|t| join(t.sites.iter().map(ToString::to_string).collect(), "all"))),
        ("created", column(&|t| format!("{:.0}", t.created_at))),
        ("revoked", column(&|t| t.revoked_at.map(|at| format!("{at:.0}")).unwrap_or_default())),
    ]);
    let table =
        table.and_then(|batch| pretty_format_batches(&[batch])).map_err(|error| failed(error.to_string()))?;
    println!("{table}");
    Ok(())
}

//! `wattlake sql`.

use std::io::{IsTerminal, Write};

use arrow::{ipc::reader::StreamReader, util::pretty::pretty_format_batches};
use clap::Args;
use futures::StreamExt;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;
use wattlake_catalog::Access;

use super::{
    Common, Failure, logging,
    remote::{Remote, RemoteArgs, here_or_there},
};
use crate::{
    http::{Encoder, OutputFormat},
    query::SqlRequest,
    server::Open,
    time::parse_as_of,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  wattlake sql \"SELECT * FROM latest\"
  wattlake sql --format csv \"SELECT * FROM measurements LIMIT 10\" > rows.csv
  wattlake sql --as-of now-1d \"SELECT count(*) FROM measurements\"")]
pub(super) struct SqlArgs {
    /// One query; tables are measurements, latest, sites, meters, energy_sources, meter_tree
    query: String,
    /// table, csv, json, ndjson, arrow or parquet
    #[arg(long, default_value = "table")]
    format: String,
    /// The archive as of a time, for example 2026-01-31T12:00:00Z or now-1d
    #[arg(long, value_name = "TIME")]
    as_of: Option<String>,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) async fn run(common: &Common, args: SqlArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let is_table = args.format == "table";
    let format: OutputFormat = if is_table {
        OutputFormat::Arrow
    } else {
        args.format.parse().map_err(|error: crate::ApiError| Failure::usage(format!("{error}, table")))?
    };
    if matches!(format, OutputFormat::Arrow | OutputFormat::Parquet)
        && !is_table
        && std::io::stdout().is_terminal()
    {
        return Err(Failure::usage("this format is binary; send it into a file with > FILE"));
    }
    let out = Output { is_table, arrow: Vec::new() };
    let (here, there) = (out.clone(), out);
    let out = here_or_there(
        &args.remote,
        &settings,
        async |open| local(open, &args, format, here).await,
        async |server| remote(server, &args, format, there).await,
    )
    .await?;
    out.finish()
}

async fn local(
    open: &Open,
    args: &SqlArgs,
    format: OutputFormat,
    mut out: Output,
) -> Result<Output, Failure> {
    let mut request = SqlRequest::new(args.query.clone(), &Access::unrestricted());
    request.as_of = args
        .as_of
        .as_deref()
        .map(|text| parse_as_of("--as-of", text, &TimeZone::UTC, Timestamp::now()))
        .transpose()?;
    let mut stream = open.queries.sql(request).await?;
    let mut encoder = Encoder::new(format, &stream.schema())?;
    while let Some(batch) = stream.next().await {
        encoder.write(&batch?)?;
        out.write(&encoder.take())?;
    }
    encoder.finish()?;
    out.write(&encoder.take())?;
    Ok(out)
}

async fn remote(
    remote: &Remote,
    args: &SqlArgs,
    format: OutputFormat,
    mut out: Output,
) -> Result<Output, Failure> {
    let name = match format {
        OutputFormat::Json => "json",
        OutputFormat::NdJson => "ndjson",
        OutputFormat::Csv => "csv",
        OutputFormat::Arrow => "arrow",
        OutputFormat::Parquet => "parquet",
    };
    let body = json!({ "query": args.query, "asOf": args.as_of });
    let response = remote.send(remote.post(&format!("/api/sql?format={name}")).json(&body)).await?;
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk
            .map_err(|error| Failure::failed(format!("the answer broke off: {}", error.without_url())))?;
        out.write(&chunk)?;
    }
    Ok(out)
}

/// Standard output, or the rows of a table until all are known.
#[derive(Clone)]
struct Output {
    is_table: bool,
    arrow: Vec<u8>,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if self.is_table {
            self.arrow.extend_from_slice(bytes);
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).map_err(|error| Failure::io(format!("cannot write the answer: {error}")))
    }

    fn finish(self) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let written = if self.is_table {
            let failed = |error| Failure::failed(format!("cannot read the answer: {error}"));
            let reader = StreamReader::try_new(&self.arrow[..], None).map_err(failed)?;
            let batches = reader.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            writeln!(out, "{}", pretty_format_batches(&batches).map_err(failed)?)
        } else {
            Ok(())
        };
        let written = written.and_then(|()| out.flush());
        written.map_err(|error| Failure::io(format!("cannot write the answer: {error}")))
    }
}

//! `wattlake demo`: a whole system with nothing prepared.

mod fleet;
mod generator;
mod polled;

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use jiff::Timestamp;
use wattlake_engine::{Batch, Engine};

use self::generator::Generator;
use super::{Common, Failure, logging};
use crate::server::{self, Listening};

/// Seconds between two readings of the history.
const STEP_SECONDS: i64 = 900;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  wattlake demo --data-dir /tmp/demo --days 7")]
pub(super) struct DemoArgs {
    /// Days of history
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(i64).range(1..=366))]
    days: i64,
}

pub(super) async fn run(common: &Common, args: DemoArgs) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, true)?;
    let open = server::open(&settings).await?;
    let listening = server::listen(&settings, &open, false).await?;
    fleet::create(open.engine.catalog(), &settings.data_dir.0).await?;
    let generator = Generator::new(&open.engine.catalog().fleet());
    let now = Timestamp::now().as_second();
    let start = now - now.rem_euclid(STEP_SECONDS) - args.days * 86_400;
    let mut rows = 0;
    for day in 0..args.days {
        let from = start + day * 86_400;
        let batch = generator.history(from, from + 86_400, STEP_SECONDS, now * 1_000_000);
        rows += batch.len();
        write(&open.engine, batch).await?;
    }
    // Today, up to now.
    let batch = generator.history(start + args.days * 86_400, now, STEP_SECONDS, now * 1_000_000);
    rows += batch.len();
    write(&open.engine, batch).await?;
    open.engine.flush().await?;
    let polled = polled::begin(&open, args.days).await?;
    welcome(&settings.data_dir.0, &listening, rows, &generator, args.days, polled);
    let engine = open.engine.clone();
    let live = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            let batch = generator.live(Timestamp::now().as_second());
            if let Err(error) = engine.write(batch).await {
                tracing::warn!(%error, "live readings were not stored");
            }
        }
    });
    let served = server::run(open, listening, async {
        server::termination().await;
        live.abort();
    });
    served.await
}

async fn write(engine: &Engine, batch: Batch) -> Result<(), Failure> {
    Ok(engine.write(batch).await?)
}

fn welcome(
    data_dir: &std::path::Path,
    listening: &Listening,
    rows: usize,
    generator: &Generator,
    days: i64,
    polled: SocketAddr,
) {
    let (sites, meters, sources) = generator.counts();
    let catalog = data_dir.join("catalog.db");
    let address = listening.http.address;
    let postgres = listening.postgres.as_ref().map_or_else(
        || "off".to_owned(),
        |endpoint| format!("psql -h {} -p {} wattlake", endpoint.address.ip(), endpoint.address.port()),
    );
    let flight = listening
        .flight
        .as_ref()
        .map_or_else(|| "off".to_owned(), |endpoint| format!("grpc://{}", endpoint.address));
    println!(
        "\nWattlake demo: {sites} sites, {meters} meters, {sources} energy sources, {days} days of history \
         ({rows} readings), and new readings every second.\nOne of the sites is polled from simulated vendor APIs, which answer on http://{polled}; \
         its history is being fetched.\n\n  \
         HTTP      http://{address}\n  \
         Postgres  {postgres} (any password)\n  \
         Flight    {flight}\n  \
         catalog   {}\n  \
         Parquet   {}\n\nTry in another terminal:\n\n  \
         # daily energy by category, in each site's own time zone\n  \
         curl 'http://{address}/api/rollup?metric=energy&bucket=1d&by=category&from=now-7d&format=csv'\n\n  \
         # SQL over everything, fresh to the second\n  \
         curl -G 'http://{address}/api/sql?format=csv' --data-urlencode \\\n    \
         \"q=SELECT s.name, max(m.timestamp) AS newest, count(*) AS readings FROM measurements m JOIN meters e ON \
         e.id = m.entity_id JOIN sites s ON s.id = e.site_id GROUP BY s.name\"\n\n  \
         # the same archive in DuckDB, as of the last flush\n  \
         duckdb -c \"INSTALL ducklake; LOAD ducklake; ATTACH 'ducklake:sqlite:{}' AS lake (READ_ONLY); \
         SELECT metric, count(*) FROM lake.measurements GROUP BY metric\"\n\nCtrl-C stops it; what it wrote stays.",
        catalog.display(),
        data_dir.join("lake").join("measurements").display(),
        catalog.display(),
    );
}

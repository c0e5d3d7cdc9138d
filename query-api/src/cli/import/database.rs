//! An existing Postgres database with the same tables: its sites, meters and energy sources keep their ids, and their readings follow.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    error::ArrowError,
};
use serde::Serialize;
use wattlake_catalog::{Catalog, ErrorKind, ForeignDatabase, ForeignReading};
use wattlake_engine::{Body, BodyFormat, Part};

use super::{Plan, Sink, report::Report};
use crate::cli::{Failure, remote::Remote};

/// Readings of one part.
const ROWS_AT_ONCE: usize = 64 << 10;

/// Whether an argument names a database.
pub(super) fn is_database(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// An address without its password.
pub(super) fn shown(url: &str) -> String {
    let without = url::Url::parse(url).ok().and_then(|mut url| {
        url.set_password(None).ok()?;
        url.set_query(None);
        Some(url.to_string())
    });
    without.unwrap_or_else(|| "postgres://".to_owned())
}

/// Where sites, meters and energy sources are made.
pub(super) enum Fleet<'a> {
    Here(&'a Catalog),
    There(&'a Remote),
}

impl Fleet<'_> {
    /// Makes one; false: it is there already.
    async fn create<T: Serialize>(
        &self,
        path: &str,
        draft: &T,
        here: impl AsyncFnOnce(&Catalog) -> wattlake_catalog::Result<()>,
    ) -> Result<bool, String> {
        match self {
            Fleet::Here(catalog) => match here(catalog).await {
                Ok(()) => Ok(true),
                Err(error) if error.kind == ErrorKind::Conflict => Ok(false),
                Err(error) => Err(error.message),
            },
            Fleet::There(remote) => match remote.ask(remote.post(path).json(draft)).await {
                Ok(_) => Ok(true),
                Err(failure) if failure.message().contains("409") => Ok(false),
                Err(failure) => Err(failure.message().to_owned()),
            },
        }
    }
}

/// Copies sites, meters and energy sources, then the readings into `sink`.
pub(super) async fn import(
    url: &str,
    plan: &Plan,
    zone: Option<&str>,
    fleet: &Fleet<'_>,
    sink: &mut Sink<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut database = ForeignDatabase::open(url, zone).await?;
    report.ignored(database.ignored());
    let (sites, refused) = database.sites().await?;
    report.refused_rows(plan, refused)?;
    let (meters, refused) = database.meters().await?;
    report.refused_rows(plan, refused)?;
    let (sources, refused) = database.sources().await?;
    report.refused_rows(plan, refused)?;
    if !plan.is_dry_run {
        for draft in sites {
            let id = format!("sites {}", draft.id.map(|id| id.to_string()).unwrap_or_default());
            let made = fleet
                .create("/api/sites", &draft, async |catalog| catalog.create_site(&draft).await.map(drop));
            report.created(plan, id, made.await)?;
        }
        for draft in meters {
            let id = format!("meters {}", draft.id.map(|id| id.to_string()).unwrap_or_default());
            let made = fleet
                .create("/api/meters", &draft, async |catalog| catalog.create_meter(&draft).await.map(drop));
            report.created(plan, id, made.await)?;
        }
        for draft in sources {
            let id = format!("energy_sources {}", draft.id.map(|id| id.to_string()).unwrap_or_default());
            let made = fleet.create("/api/energy-sources", &draft, async |catalog| {
                catalog.create_source(&draft).await.map(drop)
            });
            report.created(plan, id, made.await)?;
        }
    }
    let estimate = database.estimate().await?;
    let bar = super::reading::rows(estimate, &plan.file.name);
    let mut first_row = 0;
    database
        .measurements(ROWS_AT_ONCE, async |readings, left_out| {
            let rows = readings.len() as u64;
            let body = table(&readings).map_err(|error| Failure::failed(error.to_string()))?;
            let part = Part {
                body: Body::Table(body),
                format: BodyFormat::ArrowStream,
                first_row,
                lines: None,
                refused: Vec::new(),
            };
            match plan.is_dry_run {
                // Its entities are not here yet: nothing can be compared.
                true => report.count_foreign(&readings),
                false => sink.take(plan, part, report).await?,
            }
            if left_out > 0 {
                let words = format!("{left_out} rows without an entity, a time, a metric or a value");
                report.refused_rows(plan, vec![("measurements".to_owned(), words)])?;
            }
            first_row += rows;
            bar.set_position(first_row);
            Ok::<(), Failure>(())
        })
        .await?;
    bar.finish();
    Ok(())
}

/// Readings in the form of an Arrow body.
fn table(readings: &[ForeignReading]) -> Result<RecordBatch, ArrowError> {
    let text = |get: fn(&ForeignReading) -> Option<&str>| -> ArrayRef {
        Arc::new(readings.iter().map(get).collect::<StringArray>())
    };
    let ts = TimestampMicrosecondArray::from_iter_values(readings.iter().map(|reading| reading.ts));
    RecordBatch::try_from_iter_with_nullable([
        ("entity_id", text(|reading| Some(&reading.entity_id)), false),
        ("entity_type", text(|reading| reading.entity_type.as_deref()), true),
        ("timestamp", Arc::new(ts.with_timezone("UTC")), false),
        ("metric", text(|reading| Some(&reading.metric)), false),
        (
            "value",
            Arc::new(Float64Array::from_iter_values(readings.iter().map(|reading| reading.value))),
            false,
        ),
        ("unit", text(|reading| reading.unit.as_deref()), true),
        ("quality", text(|reading| reading.quality.as_deref()), true),
        ("metadata", text(|reading| reading.metadata.as_deref()), true),
    ])
}

//! An existing Postgres database with the same tables: its sites, meters and energy sources keep their ids, and their readings follow.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    error::ArrowError,
};
use serde::Serialize;
use uuid::Uuid;
use wattlake_catalog::{Catalog, EntityId, ForeignDatabase, ForeignReading, SiteId};
use wattlake_engine::{Body, BodyFormat, Part};

use super::{Plan, Sink, report::Report, resume::Position};
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

/// What became of a site, a meter or an energy source.
pub(super) enum Made {
    New,
    Known,
    Refused(String),
}

impl Fleet<'_> {
    async fn has(&self, kind: &str, id: Uuid) -> Result<bool, Failure> {
        match self {
            Fleet::Here(catalog) => {
                let fleet = catalog.fleet();
                Ok(fleet.site(SiteId(id)).is_some() || fleet.entity(EntityId(id)).is_some())
            }
            Fleet::There(remote) => remote.has(&format!("/api/{kind}/{id}")).await,
        }
    }
}

/// Makes what a database has and is not there yet; only finds out what would be made where nothing is to be changed.
struct Maker<'a> {
    fleet: &'a Fleet<'a>,
    plan: &'a Plan,
    /// What a dry run would have made.
    to_make: HashSet<Uuid>,
}

impl Maker<'_> {
    /// Makes one of a kind (`sites`, ...); `below`: the kind and the id of what it is at.
    async fn make<T: Serialize>(
        &mut self,
        kind: &str,
        id: Uuid,
        below: Option<(&str, Uuid)>,
        draft: &T,
        here: impl AsyncFnOnce(&Catalog) -> wattlake_catalog::Result<()>,
    ) -> Result<Made, Failure> {
        if self.fleet.has(kind, id).await? {
            return Ok(Made::Known);
        }
        if self.plan.is_dry_run {
            if let Some((kind, id)) = below
                && !self.to_make.contains(&id)
                && !self.fleet.has(kind, id).await?
            {
                return Ok(Made::Refused(format!("there is no {id} in {kind}")));
            }
            self.to_make.insert(id);
            return Ok(Made::New);
        }
        let refused = match self.fleet {
            Fleet::Here(catalog) => here(catalog).await.err().map(|error| error.message),
            Fleet::There(remote) => {
                let made = remote.ask(remote.post(&format!("/api/{kind}")).json(draft)).await;
                made.err().map(|failure| failure.message().to_owned())
            }
        };
        Ok(refused.map_or(Made::New, Made::Refused))
    }
}

/// Copies sites, meters and energy sources, then the readings into `sink`; those `after` a place, when another process has the others.
pub(super) async fn import(
    (url, zone): (&str, Option<&str>),
    (file, plan): (usize, &Plan),
    after: Option<&str>,
    fleet: &Fleet<'_>,
    sink: &mut Sink<'_>,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut database = ForeignDatabase::open(url, zone).await?;
    let stamp = database.stamp().await?;
    report.ignored(database.ignored());
    let (sites, refused_sites) = database.sites().await?;
    let (meters, refused_meters) = database.meters().await?;
    let (sources, refused_sources) = database.sources().await?;
    // The process before has told of them already.
    let is_new = after.is_none();
    for refused in [refused_sites, refused_meters, refused_sources].into_iter().filter(|_| is_new) {
        report.refused_rows(plan, refused)?;
    }
    let tell = |report: &mut Report, kind: &str, id: Uuid, made: Made| match made {
        Made::Refused(_) if !is_new => Ok(()),
        made => report.made(plan, format!("{kind} {id}"), made),
    };
    let mut maker = Maker { fleet, plan, to_make: HashSet::new() };
    for draft in sites {
        let Some(SiteId(id)) = draft.id else { continue };
        let here = async |catalog: &Catalog| catalog.create_site(&draft).await.map(drop);
        let made = maker.make("sites", id, None, &draft, here).await?;
        tell(report, "sites", id, made)?;
    }
    for draft in meters {
        let Some(EntityId(id)) = draft.id else { continue };
        let here = async |catalog: &Catalog| catalog.create_meter(&draft).await.map(drop);
        let made = maker.make("meters", id, Some(("sites", draft.site_id.0)), &draft, here).await?;
        tell(report, "meters", id, made)?;
    }
    for draft in sources {
        let Some(EntityId(id)) = draft.id else { continue };
        let here = async |catalog: &Catalog| catalog.create_source(&draft).await.map(drop);
        let made = maker.make("energy-sources", id, Some(("meters", draft.meter_id.0)), &draft, here).await?;
        tell(report, "energy_sources", id, made)?;
    }
    let to_make = maker.to_make;
    let estimate = database.estimate().await?;
    let bar = super::reading::rows(estimate, &plan.file.name);
    let mut first_row = 0;
    database
        .measurements(ROWS_AT_ONCE, after, async |mut readings, left_out, place| {
            first_row += readings.len() as u64;
            // Before the place is kept: what is told is not told again.
            if left_out > 0 {
                let words = format!("{left_out} rows without an entity, a time, a metric or a value");
                report.refused_rows(plan, vec![("measurements".to_owned(), words)])?;
            }
            if !to_make.is_empty() {
                // What is not here yet cannot be compared: all of it is new.
                let is_new = |reading: &ForeignReading| {
                    reading.entity_id.parse().is_ok_and(|id: Uuid| to_make.contains(&id))
                };
                let (new, known): (Vec<_>, _) = readings.into_iter().partition(is_new);
                report.count_foreign(&new);
                readings = known;
            }
            if !readings.is_empty() {
                let body = table(&readings).map_err(|error| Failure::failed(error.to_string()))?;
                let part = Part {
                    body: Body::Table(body),
                    format: BodyFormat::ArrowStream,
                    first_row: first_row - readings.len() as u64,
                    lines: None,
                    refused: Vec::new(),
                };
                sink.take(plan, part, report, |report| Position::of_place(file, place, report)).await?;
            }
            bar.set_position(first_row);
            Ok::<(), Failure>(())
        })
        .await?;
    bar.finish();
    if database.stamp().await? != stamp {
        eprintln!("{}: it was written to meanwhile; import it once more to take what is new", plan.file.name);
    }
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

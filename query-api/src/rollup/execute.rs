//! Running a rollup: scope, rows, cells, groups, answer.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt64Array};
use datafusion::common::ScalarValue;
use jiff::{Timestamp, civil, tz::TimeZone};
use wattlake_catalog::{Access, EntityId, Fleet, SiteId};
use wattlake_config::MetricKind;
use wattlake_engine::{ReadView, cadence_micros};

use super::{
    aggregate::{Aggregation, Cell},
    bucket::{Buckets, Width, civil_label},
    read::{Cells, Reader, SummariesRead},
    request::{Fill, GroupBy, RollupRequest},
    resolve::{Contribution, Mode, resolve},
};
use crate::{
    error::{ApiError, Result},
    query::{QueryService, SqlRequest},
    time::format_instant,
};

/// The part of the fleet that is asked about, site by site.
struct Scope {
    sites: Vec<SiteScope>,
}

struct SiteScope {
    site: SiteId,
    zone: TimeZone,
    buckets: Arc<Buckets>,
    roots: Vec<EntityId>,
    /// Entities asked for by name, outside of any tree.
    single: Vec<EntityId>,
    /// Everything that may contribute.
    universe: Vec<EntityId>,
}

/// Answers a rollup as one record batch.
pub(crate) async fn rollup(
    service: &QueryService,
    request: &RollupRequest,
    access: &Access,
) -> Result<RecordBatch> {
    let view = view_of(service, request).await?;
    rollup_of(service, request, &view, access).await
}

/// The state of the archive that a request is about.
pub(super) async fn view_of(service: &QueryService, request: &RollupRequest) -> Result<ReadView> {
    Ok(match &request.as_of {
        Some(at) => service.engine().read_view_at(at.clone()).await?,
        None => service.engine().read_view(),
    })
}

/// As [`rollup`], of one view.
pub(crate) async fn rollup_of(
    service: &QueryService,
    request: &RollupRequest,
    view: &ReadView,
    access: &Access,
) -> Result<RecordBatch> {
    let (batch, summaries) =
        rollup_with(service, request, view, access, SummariesRead::InPlaceOfMany).await?;
    metrics::counter!("wattlake_rollup_summaries_total").increment(summaries as u64);
    Ok(batch)
}

/// As [`rollup_of`]; answers also how many summaries stood for their rows.
pub(super) async fn rollup_with(
    service: &QueryService,
    request: &RollupRequest,
    view: &ReadView,
    access: &Access,
    summaries: SummariesRead,
) -> Result<(RecordBatch, usize)> {
    let engine = service.engine();
    let fleet = engine.catalog().fleet();
    let default_zone = TimeZone::get(&engine.settings().time_zone.0).unwrap_or(TimeZone::UTC);
    let scope = Scope::new(&fleet, request, access, &default_zone)?;
    let metric = engine.metrics().get(&request.metric);
    let kind = engine.metrics().kind(&request.metric);
    let adds_up = kind != MetricKind::GaugeIntensive
        && matches!(request.aggregation, Aggregation::Default | Aggregation::Sum);
    if request.mode == Mode::Residual && (!adds_up || request.by == GroupBy::Entity) {
        let message = "mode=residual is of metrics that add up, as energy and power, with agg=sum or none, and by total, category, site or meter";
        return Err(ApiError::invalid(message));
    }
    let buckets = scope.buckets();
    let reader = Reader { service, view, fleet: &fleet, request, access, kind, summaries, buckets };
    let (cells, summaries) = reader.read().await?;
    let weighted = metric.is_some_and(|metric| metric.weight_by_capacity);
    let unit = match metric {
        Some(metric) => metric.unit.clone(),
        None => unit_of(service, view, request, access).await?,
    };
    let now = Timestamp::from_microsecond(engine.clock().now_micros()).unwrap_or_default();
    let mut groups = group(&fleet, &scope, request, &cells, now);
    let rows = groups.finish(request, kind, weighted, &default_zone)?;
    Ok((to_batch(rows, request.by, &unit)?, summaries))
}

impl Scope {
    fn new(fleet: &Fleet, request: &RollupRequest, access: &Access, default_zone: &TimeZone) -> Result<Self> {
        let mut wanted: BTreeMap<SiteId, (Vec<EntityId>, Vec<EntityId>)> = BTreeMap::new();
        let visible = |site: Option<SiteId>| site.filter(|site| access.allows_site(*site));
        let missing = |what: &str, id: &dyn std::fmt::Display| ApiError::not_found(format!("no {what} {id}"));
        let is_everything =
            request.sites.is_empty() && request.meters.is_empty() && request.entities.is_empty();
        let all: Vec<SiteId> =
            fleet.sites().map(|site| site.id).filter(|id| access.allows_site(*id)).collect();
        for id in if is_everything { &all } else { &request.sites } {
            let site = visible(fleet.site(*id).map(|s| s.id)).ok_or_else(|| missing("site", id))?;
            wanted.entry(site).or_default().0.extend(fleet.roots(site));
        }
        for id in &request.meters {
            let site = visible(fleet.meter(*id).map(|m| m.site_id)).ok_or_else(|| missing("meter", id))?;
            wanted.entry(site).or_default().0.push(*id);
        }
        for id in &request.entities {
            let site = visible(fleet.site_of(*id).map(|s| s.id)).ok_or_else(|| missing("entity", id))?;
            wanted.entry(site).or_default().1.push(*id);
        }
        let mut buckets: HashMap<String, Arc<Buckets>> = HashMap::new();
        let mut sites = Vec::new();
        for (site, (roots, single)) in wanted {
            let zone = match (&request.zone, fleet.site(site).and_then(|s| s.zone_name())) {
                (Some(zone), _) => zone.clone(),
                (None, Some(name)) => TimeZone::get(name).unwrap_or_else(|_| default_zone.clone()),
                (None, None) => default_zone.clone(),
            };
            let name = zone.iana_name().unwrap_or("UTC").to_owned();
            let buckets = match buckets.get(&name) {
                Some(known) => Arc::clone(known),
                None => {
                    let made = Arc::new(Buckets::new(request.width, request.from, request.to, &zone)?);
                    buckets.insert(name, Arc::clone(&made));
                    made
                }
            };
            let per_meter =
                matches!(request.by, GroupBy::Meter | GroupBy::Entity) && request.mode == Mode::Own;
            let roots = outermost(fleet, roots, per_meter);
            let meters: BTreeSet<EntityId> = roots.iter().flat_map(|root| fleet.subtree(*root)).collect();
            let sources = meters.iter().flat_map(|meter| fleet.sources_of(*meter));
            let universe: BTreeSet<EntityId> = meters.iter().chain(sources).chain(&single).copied().collect();
            if request.mode == Mode::Residual && !single.is_empty() {
                return Err(ApiError::invalid(
                    "mode=residual is of meters and what is below them; choose meterId",
                ));
            }
            sites.push(SiteScope {
                site,
                zone,
                buckets,
                roots,
                single,
                universe: universe.into_iter().collect(),
            });
        }
        Ok(Self { sites })
    }

    /// The buckets of every entity that may contribute.
    fn buckets(&self) -> BTreeMap<EntityId, Arc<Buckets>> {
        let of_site = |site: &SiteScope| {
            site.universe.iter().map(|id| (*id, Arc::clone(&site.buckets))).collect::<Vec<_>>()
        };
        self.sites.iter().flat_map(of_site).collect()
    }
}

/// Drops roots below other roots, which would count twice; asked meter by meter, every meter is a root of its own.
fn outermost(fleet: &Fleet, roots: Vec<EntityId>, per_meter: bool) -> Vec<EntityId> {
    let roots: BTreeSet<EntityId> = roots.into_iter().collect();
    if per_meter {
        let all: BTreeSet<_> = roots.iter().flat_map(|root| fleet.subtree(*root)).collect();
        return all.into_iter().collect();
    }
    let below: BTreeSet<EntityId> =
        roots.iter().flat_map(|root| fleet.subtree(*root).into_iter().skip(1)).collect();
    roots.difference(&below).copied().collect()
}

async fn unit_of(
    service: &QueryService,
    view: &ReadView,
    request: &RollupRequest,
    access: &Access,
) -> Result<String> {
    let mut sql = SqlRequest::new("SELECT unit FROM measurements WHERE metric = $1 LIMIT 1", access);
    sql.params = vec![ScalarValue::from(request.metric.as_str())];
    sql.view = Some(view.clone());
    // The rollup has its turn.
    sql.feeds_rollup = true;
    let (_, batches) = service.collect(sql).await?;
    let unit = batches.iter().find(|batch| batch.num_rows() > 0).map(|batch| {
        let text = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8);
        text.map(|text| text.as_string::<i32>().value(0).to_owned())
    });
    Ok(unit.and_then(Result::ok).unwrap_or_default())
}

/// Names a bucket across zones: fixed buckets by their instant, calendar ones by their local start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Instant(i64),
    Civil(civil::DateTime),
}

/// One group in one bucket.
struct Part {
    contribution: Contribution,
    capacity: f64,
    cell: Cell,
    expected: f64,
}

#[derive(Default)]
struct Groups {
    /// By group name, then bucket.
    parts: BTreeMap<Option<String>, BTreeMap<Label, Vec<Part>>>,
    /// The zone of each group, and whether all of its sites share it.
    zones: HashMap<Option<String>, (TimeZone, bool)>,
}

fn group(fleet: &Fleet, scope: &Scope, request: &RollupRequest, cells: &Cells, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    let range = (request.from.as_microsecond(), request.to.as_microsecond().min(now.as_microsecond()));
    let empty = BTreeMap::new();
    for site in &scope.sites {
        // Most buckets have the same entities in them: each pattern is resolved once.
        let mut resolved: HashMap<Vec<bool>, Vec<Contribution>> = HashMap::new();
        let of_entity: Vec<_> = site.universe.iter().map(|id| cells.get(id).unwrap_or(&empty)).collect();
        for index in 0..site.buckets.len() {
            let pattern: Vec<bool> = of_entity.iter().map(|cells| cells.contains_key(&index)).collect();
            if !pattern.contains(&true) {
                continue;
            }
            let contributions = resolved.entry(pattern).or_insert_with_key(|pattern| {
                let present: BTreeSet<EntityId> =
                    site.universe.iter().zip(pattern).filter(|(_, p)| **p).map(|(id, _)| *id).collect();
                let mut found = resolve(fleet, &site.roots, request.mode, |id| present.contains(&id));
                let single = site.single.iter().filter(|id| present.contains(*id));
                found.extend(single.filter_map(|id| {
                    let meter = fleet.meter(fleet.entity(*id)?.meter_id())?;
                    Some(Contribution {
                        entity: *id,
                        meter: meter.id,
                        category: meter.category,
                        is_minus: false,
                    })
                }));
                found.sort();
                found.dedup();
                found
            });
            let (start, end) = (site.buckets.edges[index], site.buckets.edges[index + 1]);
            let observable = (end.min(range.1) - start.max(range.0)).max(0) as f64;
            let label = match request.width {
                Width::Fixed(_) | Width::All => Label::Instant(start),
                _ => Label::Civil(civil_label(start, &site.zone)),
            };
            for contribution in contributions.iter() {
                let Some(cell) = cells.get(&contribution.entity).and_then(|cells| cells.get(&index)) else {
                    continue;
                };
                let mut cell = *cell;
                if contribution.is_minus {
                    cell.value = -cell.value;
                }
                let name = match request.by {
                    GroupBy::Total => None,
                    GroupBy::Category => Some(contribution.category.to_string()),
                    GroupBy::Site => Some(site.site.to_string()),
                    GroupBy::Meter => Some(contribution.meter.to_string()),
                    GroupBy::Entity => Some(contribution.entity.to_string()),
                };
                let zone = groups.zones.entry(name.clone()).or_insert_with(|| (site.zone.clone(), true));
                zone.1 &= zone.0 == site.zone;
                let entity = fleet.entity(contribution.entity);
                groups.parts.entry(name).or_default().entry(label).or_default().push(Part {
                    contribution: *contribution,
                    capacity: entity.and_then(|entity| entity.capacity()).unwrap_or(0.0),
                    cell,
                    expected: observable / cadence_micros(fleet, contribution.entity) as f64,
                });
            }
        }
    }
    groups
}

/// A row of the answer.
struct Row {
    start: i64,
    end: i64,
    zone: TimeZone,
    group: Option<String>,
    value: Option<f64>,
    count: u64,
    coverage: f64,
    estimated_share: f64,
}

impl Groups {
    fn finish(
        &mut self,
        request: &RollupRequest,
        kind: MetricKind,
        weighted: bool,
        default_zone: &TimeZone,
    ) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (name, buckets) in std::mem::take(&mut self.parts) {
            let zone = match self.zones.get(&name) {
                Some((zone, true)) => zone.clone(),
                _ => default_zone.clone(),
            };
            let spans = Buckets::new(request.width, request.from, request.to, &zone)?;
            let mut of_group = Vec::new();
            for (label, parts) in &buckets {
                let (start, end) = span(*label, request.width, &spans, &zone)?;
                of_group.push(combine(
                    name.clone(),
                    start,
                    end,
                    &zone,
                    parts,
                    request.aggregation,
                    kind,
                    weighted,
                ));
            }
            rows.extend(fill(of_group, &spans, request.fill, &name, &zone));
        }
        rows.sort_by(|a, b| (a.start, &a.group).cmp(&(b.start, &b.group)));
        Ok(rows)
    }
}

/// Start and end of a bucket in the zone of its group.
fn span(label: Label, width: Width, spans: &Buckets, zone: &TimeZone) -> Result<(i64, i64)> {
    let start = match label {
        Label::Instant(start) => start,
        Label::Civil(local) => {
            let time = zone.to_ambiguous_timestamp(local).compatible();
            time.map_or(0, |time| time.as_microsecond())
        }
    };
    if let Some(index) = spans.index(start) {
        return Ok((spans.edges[index], spans.edges[index + 1]));
    }
    // The local day of a site may lie outside of the range as the group's zone counts it.
    let at = Timestamp::from_microsecond(start).unwrap_or_default();
    let after = Timestamp::from_microsecond(start + 1).unwrap_or_default();
    let own = Buckets::new(width, at, after, zone)?;
    Ok((own.edges[0], own.edges[1]))
}

#[expect(clippy::too_many_arguments, reason = "one row's worth of context, used once")]
fn combine(
    group: Option<String>,
    start: i64,
    end: i64,
    zone: &TimeZone,
    parts: &[Part],
    aggregation: Aggregation,
    kind: MetricKind,
    weighted: bool,
) -> Row {
    let values = || parts.iter().map(|part| part.cell.value);
    let value = match (aggregation, kind) {
        (Aggregation::Min, _) => values().fold(f64::INFINITY, f64::min),
        (Aggregation::Max, _) => values().fold(f64::NEG_INFINITY, f64::max),
        (Aggregation::Count, _) => values().sum(),
        (_, MetricKind::GaugeIntensive) => {
            let capacity: f64 = parts.iter().map(|part| part.capacity).sum();
            if weighted && capacity > 0.0 {
                parts.iter().map(|part| part.cell.value * part.capacity).sum::<f64>() / capacity
            } else {
                values().sum::<f64>() / parts.len() as f64
            }
        }
        (_, MetricKind::GaugeExtensive | MetricKind::Interval | MetricKind::Register) => values().sum(),
    };
    debug_assert!(parts.windows(2).all(|pair| pair[0].contribution != pair[1].contribution), "ROLL-1");
    let count: u64 = parts.iter().map(|part| part.cell.count).sum();
    let estimated: u64 = parts.iter().map(|part| part.cell.estimated).sum();
    let expected: f64 = parts.iter().map(|part| part.expected).sum();
    Row {
        start,
        end,
        zone: zone.clone(),
        group,
        value: Some(value),
        count,
        coverage: if expected > 0.0 { (count as f64 / expected).min(1.0) } else { 1.0 },
        estimated_share: if count > 0 { (estimated as f64 / count as f64).min(1.0) } else { 0.0 },
    }
}

/// Adds rows for the buckets without readings.
fn fill(rows: Vec<Row>, spans: &Buckets, fill: Fill, name: &Option<String>, zone: &TimeZone) -> Vec<Row> {
    if fill == Fill::None {
        return rows;
    }
    let mut by_start: BTreeMap<i64, Row> = rows.into_iter().map(|row| (row.start, row)).collect();
    let known: Vec<(i64, f64)> = by_start.values().filter_map(|row| Some((row.start, row.value?))).collect();
    for edges in spans.edges.windows(2) {
        let at = edges[0];
        by_start.entry(at).or_insert_with(|| {
            let next = known.partition_point(|(start, _)| *start < at);
            let before = next.checked_sub(1).map(|i| known[i]);
            let value = match fill {
                Fill::None | Fill::Null => None,
                Fill::Zero => Some(0.0),
                Fill::Previous => before.map(|(_, value)| value),
                Fill::Linear => before
                    .zip(known.get(next))
                    .map(|((t0, v0), (t1, v1))| v0 + (v1 - v0) * ((at - t0) as f64 / (t1 - t0) as f64)),
            };
            Row {
                start: at,
                end: edges[1],
                zone: zone.clone(),
                group: name.clone(),
                value,
                count: 0,
                coverage: 0.0,
                estimated_share: 0.0,
            }
        });
    }
    by_start.into_values().collect()
}

fn to_batch(rows: Vec<Row>, by: GroupBy, unit: &str) -> Result<RecordBatch> {
    let texts = |f: &dyn Fn(&Row) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(f)))
    };
    let numbers = |f: &dyn Fn(&Row) -> Option<f64>| -> ArrayRef {
        Arc::new(rows.iter().map(f).collect::<Float64Array>())
    };
    let mut columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("bucketStart", texts(&|row| format_instant(row.start, &row.zone)), false),
        ("bucketEnd", texts(&|row| format_instant(row.end, &row.zone)), false),
    ];
    let group = match by {
        GroupBy::Total => None,
        GroupBy::Category => Some("category"),
        GroupBy::Site => Some("siteId"),
        GroupBy::Meter => Some("meterId"),
        GroupBy::Entity => Some("entityId"),
    };
    if let Some(name) = group {
        columns.push((name, texts(&|row| row.group.clone().unwrap_or_default()), false));
    }
    columns.extend([
        ("value", numbers(&|row| row.value), true),
        ("unit", texts(&|_| unit.to_owned()), false),
        (
            "count",
            Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.count))) as ArrayRef,
            false,
        ),
        ("coverage", numbers(&|row| Some(row.coverage)), true),
        ("estimatedShare", numbers(&|row| Some(row.estimated_share)), true),
    ]);
    RecordBatch::try_from_iter_with_nullable(columns)
        .map_err(|error| ApiError::internal(format!("the answer cannot be built: {error}")))
}

//! The energy balance of sites: what was produced, consumed, exchanged with the grid and stored, and what follows from it.
//!
//! Measured terms are taken as they are; one that nobody measures is what the others leave:
//! `production + import + discharge = consumption + export + charge`, in each bucket.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray},
    datatypes::Float64Type,
};
use wattlake_catalog::{Access, Category, EntityId, Fleet, SiteId};
use wattlake_config::Carbon;
use wattlake_engine::ReadView;

use super::{
    execute::{rollup_of, view_of},
    request::{GroupBy, RollupRequest},
    resolve::Mode,
};
use crate::{
    error::{ApiError, Result},
    query::QueryService,
};

/// Energy by the category of the meter; what a meter says of its own flows goes by these.
const METRICS: [&str; 5] = ["energy", "import_energy", "export_energy", "charge_energy", "discharge_energy"];

/// The source type under which the grid's emission factor is configured.
const GRID: &str = "grid";

/// What was measured at a site in one bucket, in kWh.
#[derive(Default)]
struct Measured {
    end: String,
    production: Option<f64>,
    consumption: Option<f64>,
    import: Option<f64>,
    export: Option<f64>,
    charge: Option<f64>,
    discharge: Option<f64>,
    /// Production by source type; an empty name where that is not known.
    sources: BTreeMap<String, f64>,
    coverage: Option<f64>,
}

/// The balance of a site in one bucket: energy in kWh, shares from 0 to 1, carbon in kg of CO2 equivalents.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Balance {
    production: f64,
    consumption: Option<f64>,
    import: Option<f64>,
    export: Option<f64>,
    charge: f64,
    discharge: f64,
    self_consumption: Option<f64>,
    self_consumption_share: Option<f64>,
    self_sufficiency: Option<f64>,
    /// What is measured on one side and not on the other, where all is measured.
    unaccounted: Option<f64>,
    carbon: Option<f64>,
}

/// The balance of the sites and buckets of a request, whose metric, grouping and aggregation do not matter.
pub(crate) async fn balance(
    service: &QueryService,
    request: &RollupRequest,
    access: &Access,
) -> Result<RecordBatch> {
    let engine = service.engine();
    let view = view_of(service, request).await?;
    let fleet = engine.catalog().fleet();
    let mut cells: BTreeMap<(SiteId, String), Measured> = BTreeMap::new();
    for metric in METRICS {
        measure(service, request, &view, access, &fleet, metric, &mut cells).await?;
    }
    let factors = &engine.settings().carbon;
    let rows: Vec<_> =
        cells.into_iter().map(|(key, cell)| (key, Balance::of(&cell, factors), cell)).collect();
    let texts = |of: &dyn Fn(&(SiteId, String), &Measured) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _, cell)| of(key, cell))))
    };
    let numbers = |of: &dyn Fn(&Balance) -> Option<f64>| -> ArrayRef {
        Arc::new(rows.iter().map(|(_, balance, _)| of(balance)).collect::<Float64Array>())
    };
    let coverage: Float64Array = rows.iter().map(|(_, _, cell)| cell.coverage).collect();
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("bucketStart", texts(&|key, _| key.1.clone()), false),
        ("bucketEnd", texts(&|_, cell| cell.end.clone()), false),
        ("siteId", texts(&|key, _| key.0.to_string()), false),
        ("production", numbers(&|b| Some(b.production)), false),
        ("consumption", numbers(&|b| b.consumption), true),
        ("import", numbers(&|b| b.import), true),
        ("export", numbers(&|b| b.export), true),
        ("charge", numbers(&|b| Some(b.charge)), false),
        ("discharge", numbers(&|b| Some(b.discharge)), false),
        ("selfConsumption", numbers(&|b| b.self_consumption), true),
        ("selfConsumptionShare", numbers(&|b| b.self_consumption_share), true),
        ("selfSufficiency", numbers(&|b| b.self_sufficiency), true),
        ("unaccounted", numbers(&|b| b.unaccounted), true),
        ("carbon", numbers(&|b| b.carbon), true),
        ("coverage", Arc::new(coverage), true),
    ];
    RecordBatch::try_from_iter_with_nullable(columns).map_err(|error| ApiError::internal(error.to_string()))
}

/// Adds what the entities of each site measured of one metric.
async fn measure(
    service: &QueryService,
    request: &RollupRequest,
    view: &ReadView,
    access: &Access,
    fleet: &Fleet,
    metric: &str,
    cells: &mut BTreeMap<(SiteId, String), Measured>,
) -> Result<()> {
    let request =
        RollupRequest { metric: metric.to_owned(), by: GroupBy::Entity, mode: Mode::Auto, ..request.clone() };
    let batch = rollup_of(service, &request, view, access).await?;
    let column = |name: &str| {
        batch.column_by_name(name).ok_or_else(|| ApiError::internal(format!("a rollup has no {name}")))
    };
    let (starts, ends) = (column("bucketStart")?.as_string::<i32>(), column("bucketEnd")?.as_string::<i32>());
    let entities = column("entityId")?.as_string::<i32>();
    let values = column("value")?.as_primitive::<Float64Type>();
    let coverages = column("coverage")?.as_primitive::<Float64Type>();
    let mut types = HashMap::new();
    for row in 0..batch.num_rows() {
        let entity: EntityId = entities.value(row).parse()?;
        let Some(site) = fleet.site_of(entity).filter(|_| values.is_valid(row)) else { continue };
        let (value, coverage) = (values.value(row), coverages.is_valid(row).then(|| coverages.value(row)));
        let cell = cells.entry((site.id, starts.value(row).to_owned())).or_default();
        ends.value(row).clone_into(&mut cell.end);
        cell.coverage = match (cell.coverage, coverage) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let term = match (metric, category_of(fleet, entity)) {
            ("energy", Some(Category::Prod)) => {
                let name = types.entry(entity).or_insert_with(|| source_type(fleet, entity));
                *cell.sources.entry(name.clone()).or_default() += value;
                &mut cell.production
            }
            ("energy", Some(Category::Cons)) => &mut cell.consumption,
            ("energy", Some(Category::Inj)) | ("export_energy", _) => &mut cell.export,
            ("import_energy", _) => &mut cell.import,
            ("charge_energy", _) => &mut cell.charge,
            ("discharge_energy", _) => &mut cell.discharge,
            // The energy of a store says nothing of its direction.
            _ => continue,
        };
        *term.get_or_insert(0.0) += value;
    }
    Ok(())
}

fn category_of(fleet: &Fleet, entity: EntityId) -> Option<Category> {
    let meter = fleet.meter(entity).or_else(|| fleet.meter(fleet.source(entity)?.meter_id))?;
    Some(meter.category)
}

/// What an entity makes its energy from: its own type, or the one type of all sources at or below it.
fn source_type(fleet: &Fleet, entity: EntityId) -> String {
    if let Some(source) = fleet.source(entity) {
        return source.source_type.to_lowercase();
    }
    let below = fleet.subtree(entity);
    let mut types =
        below.iter().flat_map(|meter| fleet.sources_of(*meter)).filter_map(|id| fleet.source(*id));
    let Some(first) = types.next().map(|source| source.source_type.to_lowercase()) else {
        return String::new();
    };
    if types.all(|source| source.source_type.to_lowercase() == first) { first } else { String::new() }
}

impl Balance {
    fn of(measured: &Measured, factors: &Carbon) -> Self {
        let production = measured.production.unwrap_or(0.0);
        let (charge, discharge) = (measured.charge.unwrap_or(0.0), measured.discharge.unwrap_or(0.0));
        let (mut consumption, mut import, mut export) =
            (measured.consumption, measured.import, measured.export);
        let mut unaccounted = None;
        match (consumption, import, export) {
            (Some(c), Some(i), Some(e)) => unaccounted = Some(production + i + discharge - c - e - charge),
            (Some(c), Some(i), None) => export = Some((production + i + discharge - c - charge).max(0.0)),
            (Some(c), None, Some(e)) => import = Some((c + e + charge - production - discharge).max(0.0)),
            (Some(c), None, None) => {
                // Only the difference is known; it is all of one direction.
                let net = c + charge - production - discharge;
                (import, export) = (Some(net.max(0.0)), Some((-net).max(0.0)));
            }
            (None, Some(i), e) => {
                consumption = Some((production + i + discharge - e.unwrap_or(0.0) - charge).max(0.0));
            }
            (None, None, _) => {}
        }
        let share = |part: f64, whole: f64| (whole > 0.0).then(|| (part / whole).clamp(0.0, 1.0));
        let self_consumption = export.map(|export| (production - export).clamp(0.0, production.max(0.0)));
        let carbon_of_sources: Option<f64> =
            measured.sources.iter().map(|(name, energy)| Some(factors.factor(name)? * energy)).sum();
        let carbon_of_grid = import.and_then(|import| match factors.factor(GRID) {
            Some(factor) => Some(factor * import),
            None => (import == 0.0).then_some(0.0),
        });
        Self {
            production,
            consumption,
            import,
            export,
            charge,
            discharge,
            self_consumption,
            self_consumption_share: self_consumption.and_then(|used| share(used, production)),
            self_sufficiency: consumption.zip(import).and_then(|(c, i)| share(c - i, c)),
            unaccounted,
            carbon: carbon_of_sources.zip(carbon_of_grid).map(|(sources, grid)| sources + grid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(terms: [Option<f64>; 6], sources: &[(&str, f64)]) -> Balance {
        let [production, consumption, import, export, charge, discharge] = terms;
        let sources = sources.iter().map(|(name, energy)| ((*name).to_owned(), *energy)).collect();
        let measured = Measured {
            production,
            consumption,
            import,
            export,
            charge,
            discharge,
            sources,
            ..Measured::default()
        };
        let factors =
            Carbon { factors: BTreeMap::from([("grid".to_owned(), 0.5), ("solar".to_owned(), 0.04)]) };
        Balance::of(&measured, &factors)
    }

    #[test]
    fn what_is_not_measured_is_what_the_others_leave() {
        // A day with sun: 10 made, 6 used, 5 sold, 1 bought.
        let full = of([Some(10.0), Some(6.0), Some(1.0), Some(5.0), None, None], &[("solar", 10.0)]);
        assert_eq!((full.self_consumption, full.self_consumption_share), (Some(5.0), Some(0.5)));
        assert_eq!((full.unaccounted, full.carbon), (Some(0.0), Some(10.0 * 0.04 + 0.5)));
        assert!((full.self_sufficiency.expect("known") - 5.0 / 6.0).abs() < 1e-12);
        for terms in [
            [Some(10.0), None, Some(1.0), Some(5.0), None, None],
            [Some(10.0), Some(6.0), None, Some(5.0), None, None],
            [Some(10.0), Some(6.0), Some(1.0), None, None, None],
        ] {
            let other = of(terms, &[("solar", 10.0)]);
            assert_eq!(Balance { unaccounted: Some(0.0), ..other }, full, "{terms:?}");
        }
        // With a store that took 2 and gave 1, only the difference to the grid is known.
        let stored = of([Some(10.0), Some(6.0), None, None, Some(2.0), Some(1.0)], &[("solar", 10.0)]);
        assert_eq!(
            (stored.import, stored.export, stored.self_consumption),
            (Some(0.0), Some(3.0), Some(7.0))
        );
        // Nothing to divide by, a source without a factor, a site that only produces.
        let dark = of([None, Some(0.0), None, None, None, None], &[]);
        assert_eq!(
            (dark.self_consumption_share, dark.self_sufficiency, dark.carbon),
            (None, None, Some(0.0))
        );
        assert_eq!(of([Some(1.0), Some(1.0), None, None, None, None], &[("tidal", 1.0)]).carbon, None);
        let producer = of([Some(3.0), None, None, None, None, None], &[("solar", 3.0)]);
        assert_eq!((producer.consumption, producer.import, producer.carbon), (None, None, None));
    }
}

//! How much a plan reads, as far as that can be told before it is read.

use std::sync::Arc;

use datafusion::{
    common::tree_node::TreeNodeRecursion,
    datasource::source_as_provider,
    error::Result,
    logical_expr::{LogicalPlan, TableScan},
};

use super::{
    key_range::KeyRange,
    measurements::{MeasurementsTable, TIME},
    rollups::RollupTable,
    totals::SummedReadings,
};

/// Readings of no more series, over no more time than [`SHORT`], are few.
const SERIES_FEW: usize = 4;
/// Microseconds: a day of any zone.
const SHORT: i64 = 25 * 3_600_000_000;

/// Whether a plan reads so little that to divide the work between threads costs more than it saves: each of them has to be woken,
/// which takes as long as to go through thousands of rows.
pub(crate) fn reads_little(plan: &LogicalPlan) -> Result<bool> {
    let mut is_little = true;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            is_little &= is_small(scan);
        }
        Ok(if is_little { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(is_little)
}

fn is_small(scan: &TableScan) -> bool {
    let Ok(table) = source_as_provider(&scan.source) else { return false };
    let table = Arc::as_ref(&table);
    if table.downcast_ref::<MeasurementsTable>().is_some() {
        let range = KeyRange::of(&scan.filters, TIME);
        range.series_at_most().is_some_and(|series| series <= SERIES_FEW)
            && range.to.saturating_sub(range.from) <= SHORT
    } else if let Some(summed) = table.downcast_ref::<SummedReadings>() {
        summed.is_small()
    } else {
        // The fleet and the newest readings are small beside readings.
        table.downcast_ref::<RollupTable>().is_none()
    }
}

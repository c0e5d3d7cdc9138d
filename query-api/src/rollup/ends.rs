//! Registers beyond the range that is asked for.
//!
//! What a register counted while nobody read it is spread over that time, so a gap that reaches into the range needs the reading
//! before it and the one after it, however far away they are: else months added up would be less than the year.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{
    array::AsArray,
    datatypes::{DataType, TimestampMicrosecondType},
};
use datafusion::common::ScalarValue;
use wattlake_catalog::EntityId;

use super::{
    aggregate::Item,
    read::{ENTITIES_LISTED_MAX, Found, Reader},
};
use crate::{
    error::{ApiError, Result},
    query::SqlRequest,
};

/// Entities that are read at once: all of them over the time that one of them needs.
const ENTITIES_AT_ONCE: usize = 200;
/// So much is read beyond the readings that were found, microseconds: what goes before tells whether one is a glitch.
const BEYOND: i64 = 2 * 86_400_000_000;

/// Which entities' readings do not reach over the ends of the range.
#[derive(Default)]
pub(super) struct Ends {
    /// With any readings in the window.
    read: BTreeSet<EntityId>,
    /// With two readings just before the range: one might be a glitch.
    begun: BTreeSet<EntityId>,
    /// With a reading after it.
    ended: BTreeSet<EntityId>,
}

impl Ends {
    /// Takes what was read of an entity, in order of time.
    pub(super) fn take(&mut self, entity: EntityId, items: &[Item<'_>], (from, to): (i64, i64)) {
        let Some(last) = items.last() else { return };
        self.read.insert(entity);
        let before = |item: &&Item<'_>| item.first().ts < from;
        let known: u64 = items.iter().take_while(before).map(Item::count).sum();
        if known >= 2 {
            self.begun.insert(entity);
        }
        if last.last().ts >= to {
            self.ended.insert(entity);
        }
    }
}

impl Reader<'_> {
    /// Aggregates anew the registers that were not read for a while at an end of the range.
    pub(super) async fn close_ends(&self, found: &mut Found) -> Result<()> {
        let ends = std::mem::take(&mut found.ends);
        let lacking = |known: &BTreeSet<EntityId>| -> Vec<EntityId> {
            self.buckets.keys().filter(|entity| !known.contains(entity)).copied().collect()
        };
        let (from, to) = self.window();
        let before = self.nearest("max(timestamp)", "<", from, &lacking(&ends.begun)).await?;
        let after = self.nearest("min(timestamp)", ">=", to, &lacking(&ends.ended)).await?;
        let mut reads: Vec<(i64, i64, EntityId)> = Vec::new();
        for entity in self.buckets.keys() {
            let (before, after) = (before.get(entity), after.get(entity));
            let is_read = ends.read.contains(entity);
            if (before.is_some() && (is_read || after.is_some())) || (after.is_some() && is_read) {
                let start = before.map_or(from, |before| before.saturating_sub(BEYOND));
                reads.push((start, after.map_or(to, |after| after.saturating_add(BEYOND)), *entity));
            }
        }
        // Those with gaps of the same time together.
        reads.sort_unstable();
        for reads in reads.chunks(ENTITIES_AT_ONCE) {
            let start = reads.iter().map(|read| read.0).min().unwrap_or(from);
            let end = reads.iter().map(|read| read.1).max().unwrap_or(to);
            let entities: Vec<EntityId> = reads.iter().map(|read| read.2).collect();
            self.read_rows(&entities, (start, end), found).await?;
        }
        Ok(())
    }

    /// The time of the reading nearest to a time, of those of some entities that have any.
    async fn nearest(
        &self,
        nearest: &str,
        side: &str,
        at: i64,
        entities: &[EntityId],
    ) -> Result<BTreeMap<EntityId, i64>> {
        if entities.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut query = format!(
            "SELECT entity_id, {nearest} FROM measurements WHERE metric = $1 AND timestamp {side} $2 AND quality IN ({})",
            self.qualities()
        );
        if entities.len() <= ENTITIES_LISTED_MAX {
            let ids: Vec<_> = entities.iter().map(|id| format!("'{id}'")).collect();
            query += &format!(" AND entity_id IN ({})", ids.join(", "));
        }
        query += " GROUP BY entity_id";
        let time = ScalarValue::TimestampMicrosecond(Some(at), Some("UTC".into()));
        let request = SqlRequest {
            params: vec![ScalarValue::from(self.request.metric.as_str()), time],
            view: Some(self.view.clone()),
            feeds_rollup: true,
            ..SqlRequest::new(query, self.access)
        };
        let (_, batches) = self.service.collect(request).await?;
        let mut found = BTreeMap::new();
        for batch in batches {
            let ids = arrow::compute::cast(batch.column(0), &DataType::Utf8)
                .map_err(|error| ApiError::internal(error.to_string()))?;
            let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            for (id, time) in ids.as_string::<i32>().iter().zip(times.values()) {
                found.insert(id.unwrap_or_default().parse::<EntityId>()?, *time);
            }
        }
        found.retain(|entity, _| entities.binary_search(entity).is_ok());
        Ok(found)
    }
}

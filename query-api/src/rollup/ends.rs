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
use wattlake_engine::{GLITCH_LASTS, HOLD_CADENCES};

use super::{
    aggregate::{Item, Rules},
    read::{ENTITIES_LISTED_MAX, Found, Reader},
};
use crate::{
    error::{ApiError, Result},
    query::SqlRequest,
};

/// Entities that are read at once: all of them over the time that one of them needs.
const ENTITIES_AT_ONCE: usize = 200;

/// Entities whose rows are read together begin this close to each other, microseconds.
const BEGIN_WITHIN: i64 = 30 * 86_400_000_000;

/// Which entities' readings do not reach over the ends of the range.
#[derive(Default)]
pub(super) struct Ends {
    /// With any readings in the window.
    read: BTreeSet<EntityId>,
    /// With a reading before the range, of which those before it tell what it counts for; its time.
    begun: BTreeMap<EntityId, i64>,
    /// With a reading just after it, so that those after that one are in the window as well.
    ended: BTreeSet<EntityId>,
}

impl Ends {
    /// Takes what was read of an entity, in order of time.
    pub(super) fn take(&mut self, entity: EntityId, items: &[Item<'_>], rules: &Rules) {
        let Some(first) = items.first() else { return };
        self.read.insert(entity);
        let before = items.iter().rev().map(|item| item.last().ts).find(|ts| *ts < rules.from);
        if let Some(before) = before.filter(|before| first.first().ts <= before.saturating_sub(GLITCH_LASTS))
        {
            self.begun.insert(entity, before);
        }
        let after = items.iter().map(|item| item.first().ts).find(|ts| *ts >= rules.to);
        if after.is_some_and(|after| after <= rules.to.saturating_add(rules.cadence * HOLD_CADENCES)) {
            self.ended.insert(entity);
        }
    }
}

/// Rows of an entity that are to be read anew.
struct Wanted {
    /// The last reading before the range.
    begin: Option<i64>,
    end: i64,
    entity: EntityId,
}

impl Reader<'_> {
    /// Aggregates anew the registers that were not read for a while at an end of the range.
    pub(super) async fn close_ends(&self, found: &mut Found) -> Result<()> {
        let ends = std::mem::take(&mut found.ends);
        let ((from, to), (_, window_end)) = (self.range(), self.window());
        let all = || self.buckets.keys().copied();
        let not_begun: Vec<_> = all().filter(|entity| !ends.begun.contains_key(entity)).collect();
        let not_ended: Vec<_> = all().filter(|entity| !ends.ended.contains(entity)).collect();
        let before = self.nearest("max(timestamp)", "<", from, &not_begun).await?;
        let after = self.nearest("min(timestamp)", ">=", to, &not_ended).await?;
        let mut wanted: Vec<Wanted> = Vec::new();
        for entity in self.buckets.keys() {
            let (before, after) = (before.get(entity).copied(), after.get(entity).copied());
            let is_read = ends.read.contains(entity);
            if (before.is_some() && (is_read || after.is_some())) || (after.is_some() && is_read) {
                // A known beginning is read again with the rest.
                let begin = before.or_else(|| ends.begun.get(entity).copied());
                let end = after.map_or(window_end, |after| after.saturating_add(GLITCH_LASTS + 1));
                wanted.push(Wanted { begin, end, entity: *entity });
            }
        }
        wanted.sort_unstable_by_key(|wanted| (wanted.begin, wanted.end));
        let mut rest = &wanted[..];
        while let Some(first) = rest.first() {
            let is_near = |wanted: &&Wanted| match (first.begin, wanted.begin) {
                (Some(first), Some(begin)) => begin - first <= BEGIN_WITHIN,
                (first, begin) => first == begin,
            };
            let count = rest.iter().take(ENTITIES_AT_ONCE).take_while(is_near).count();
            let (together, others) = rest.split_at(count);
            self.read_together(together, found).await?;
            rest = others;
        }
        Ok(())
    }

    /// From a reading on that lies so far before the last one before the range that what this one counts for is sure.
    async fn read_together(&self, wanted: &[Wanted], found: &mut Found) -> Result<()> {
        let (from, to) = self.range();
        let entities: Vec<EntityId> = wanted.iter().map(|wanted| wanted.entity).collect();
        let end = wanted.iter().map(|wanted| wanted.end).max().unwrap_or(to);
        let start = match wanted.iter().filter_map(|wanted| wanted.begin).min() {
            Some(begin) => {
                let sure = begin.saturating_sub(GLITCH_LASTS);
                let starts = self.nearest("max(timestamp)", "<=", sure, &entities).await?;
                starts.into_values().min().unwrap_or(sure)
            }
            None => from,
        };
        self.read_rows(&entities, (start, end), found).await
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

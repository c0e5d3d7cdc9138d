//! Whether the summaries of a file say what its rows say.

use crate::{HOLD_CADENCES, SeriesKey, StretchSummary, Summary, rows::Rows};

/// Sums up rows anew, in their order, and compares that with the summaries of their file.
pub(super) struct SummaryCheck {
    is_there: bool,
    stored: std::iter::Peekable<std::vec::IntoIter<StretchSummary>>,
    next_row: u64,
    summary: Option<Summary>,
    wrong: Option<String>,
}

impl SummaryCheck {
    pub(super) fn new(stored: Option<Vec<StretchSummary>>) -> Self {
        Self {
            is_there: stored.is_some(),
            stored: stored.unwrap_or_default().into_iter().peekable(),
            next_row: 0,
            summary: None,
            wrong: None,
        }
    }

    pub(super) fn take(&mut self, key: &SeriesKey, rows: &Rows) {
        for row in 0..rows.len() {
            let Some(stretch) = self.stored.peek() else {
                if self.is_there && self.wrong.is_none() {
                    self.wrong = Some(format!("rows of {} have no summary", key.metric));
                }
                return;
            };
            let is_in_place = stretch.entity == key.entity && stretch.rows.contains(&self.next_row);
            if !is_in_place && self.wrong.is_none() {
                self.wrong = Some(format!("the summaries do not follow the rows of {}", key.metric));
            }
            self.next_row += 1;
            let hold = stretch.cadence.saturating_mul(1_000_000 * HOLD_CADENCES);
            Summary::take_row(&mut self.summary, rows, row, stretch.kind, hold);
            if self.next_row < stretch.rows.end {
                continue;
            }
            let (found, kind) = (self.summary.take(), stretch.kind);
            let is_like = match (&stretch.summary, &found) {
                _ if !stretch.is_whole => true,
                (Some(stored), Some(found)) => found.is_like(stored, kind),
                (stored, found) => stored.is_none() && found.is_none(),
            };
            if !is_like && self.wrong.is_none() {
                self.wrong = Some(format!(
                    "the summary of {} of entity {} up to {} us does not say what its rows say",
                    key.metric, key.entity, rows.ts[row]
                ));
            }
            self.stored.next();
        }
    }

    /// What is wrong, in words.
    pub(super) fn finish(mut self) -> Option<String> {
        let is_over = self.stored.peek().is_none();
        self.wrong.take().or_else(|| (!is_over).then(|| "there are summaries without rows".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;
    use wattlake_catalog::{EntityId, EntityType, Quality};
    use wattlake_config::MetricKind;

    use super::*;
    use crate::Point;

    #[test]
    fn summaries_that_say_something_else_are_found() {
        let entity = EntityId(Uuid::from_u128(1));
        let key = SeriesKey { entity, entity_type: EntityType::Meter, metric: Arc::from("power") };
        let mut rows = Rows::with_capacity(4);
        for (ts, value, quality) in [
            (0, 1.0, Quality::Good),
            (10, 3.0, Quality::Bad),
            (20, 2.0, Quality::Estimated),
            (30, 8.0, Quality::Good),
        ] {
            rows.ts.push(ts);
            rows.value.push(value);
            rows.quality.push(quality);
        }
        let mut summary = Summary::of(Point { ts: 0, value: 1.0 }, false);
        summary.push(Point { ts: 20, value: 2.0 }, true, MetricKind::GaugeExtensive, 2_000_000);
        let day = |rows: std::ops::Range<u64>, summary| StretchSummary {
            entity,
            kind: MetricKind::GaugeExtensive,
            cadence: 1,
            rows,
            is_whole: true,
            summary: Some(summary),
        };
        let last = Summary::of(Point { ts: 30, value: 8.0 }, false);
        let check = |stored: Vec<StretchSummary>| {
            let mut check = SummaryCheck::new(Some(stored));
            check.take(&key, &rows);
            check.finish()
        };
        assert_eq!(check(vec![day(0..3, summary), day(3..4, last)]), None);
        assert!(check(vec![day(0..3, summary)]).is_some(), "a day is missing");
        let wrong = Summary { weighted: summary.weighted + 1.0, ..summary };
        let message = check(vec![day(0..3, wrong), day(3..4, last)]).expect("wrong");
        assert!(message.contains("power") && message.contains("20 us"), "{message}");
        assert!(check(vec![day(0..3, summary), day(4..5, last)]).is_some(), "not where the rows are");
        assert!(check(vec![day(0..3, summary), day(3..4, last), day(4..5, last)]).is_some(), "too many");
        assert!(check(vec![day(0..3, Summary { count: 3, ..summary }), day(3..4, last)]).is_some());
    }
}

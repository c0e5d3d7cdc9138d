//! Whether the series totals of a file say what its rows say.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type},
};

use crate::{Result, SeriesKey, SeriesTotals, UnitId, archive::SeriesTotalsWriter, rows::Rows};

/// Adds up rows anew, in their order, and compares that with the totals of their file.
pub(super) struct TotalsCheck {
    stored: Option<(SeriesTotals, SeriesTotalsWriter)>,
}

impl TotalsCheck {
    pub(super) fn new(stored: Option<SeriesTotals>) -> Self {
        Self { stored: stored.map(|totals| (totals, SeriesTotalsWriter::default())) }
    }

    pub(super) fn take(&mut self, key: &SeriesKey, rows: &Rows, unit: &dyn Fn(UnitId) -> Arc<str>) {
        if let Some((_, found)) = &mut self.stored {
            found.append(key, rows, 0..rows.len(), unit);
        }
    }

    /// What is wrong, in words.
    pub(super) fn finish(self) -> Result<Option<String>> {
        let Some((stored, found)) = self.stored else { return Ok(None) };
        let found = found.into_batch()?;
        let wrong = found.is_none_or(|found| !are_alike(&stored.batch, &found));
        Ok(wrong.then(|| "the totals of its series do not say what its rows say".to_owned()))
    }
}

/// Whether totals say what those made anew say, but for the rounding of sums and columns that they do not have.
fn are_alike(stored: &RecordBatch, found: &RecordBatch) -> bool {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    let is_like = |(a, b): (&ArrayRef, &ArrayRef)| match a.data_type() {
        DataType::Float64 => {
            let (a, b) = (a.as_primitive::<Float64Type>().values(), b.as_primitive::<Float64Type>().values());
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(*a, *b))
        }
        DataType::Dictionary(..) => {
            let texts = |column: &ArrayRef| arrow::compute::cast(column, &DataType::Utf8);
            matches!((texts(a), texts(b)), (Ok(a), Ok(b)) if a.as_ref() == b.as_ref())
        }
        _ => a.to_data() == b.to_data(),
    };
    let schema = stored.schema();
    let columns = schema.fields().iter().zip(stored.columns());
    columns.into_iter().all(|(field, a)| found.column_by_name(field.name()).is_some_and(|b| is_like((a, b))))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wattlake_catalog::{EntityId, EntityType, Quality};

    use super::*;

    #[test]
    fn totals_that_say_something_else_are_found() {
        let key = SeriesKey {
            entity: EntityId(Uuid::from_u128(1)),
            entity_type: EntityType::Meter,
            metric: Arc::from("power"),
        };
        let rows = |values: &[f64]| Rows {
            ts: (0..values.len() as i64).collect(),
            value: values.to_vec(),
            quality: vec![Quality::Good; values.len()],
            unit: vec![UnitId(0); values.len()],
            created_at: vec![0; values.len()],
            metadata: Vec::new(),
        };
        let unit = |_| Arc::from("kW");
        let check = |stored: &[f64], found: &[f64]| {
            let mut writer = SeriesTotalsWriter::default();
            writer.append(&key, &rows(stored), 0..stored.len(), &unit);
            let batch = writer.into_batch().expect("totals").expect("not too many");
            let mut check = TotalsCheck::new(Some(SeriesTotals { batch, series: Vec::new() }));
            check.take(&key, &rows(found), &unit);
            check.finish().expect("checked")
        };
        assert_eq!(check(&[0.1, 0.2, 0.3], &[0.1, 0.2, 0.3]), None);
        assert_eq!(check(&[0.1, 0.2, 0.3], &[0.3, 0.2, 0.1]), None, "another order of the same");
        for other in [&[0.1, 0.2, 0.31][..], &[0.1, 0.2], &[0.1, 0.1, 0.4]] {
            assert!(check(&[0.1, 0.2, 0.3], other).is_some(), "{other:?}");
        }
        assert_eq!(TotalsCheck::new(None).finish().expect("checked"), None);
    }
}

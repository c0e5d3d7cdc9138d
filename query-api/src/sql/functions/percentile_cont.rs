//! `percentile_cont(p) WITHIN GROUP (ORDER BY value)` to the last digit.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, ListArray},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, FieldRef, Float64Type},
};
use datafusion::{
    common::ScalarValue,
    error::Result,
    functions_aggregate::percentile_cont::percentile_cont_udaf,
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator,
        function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs},
    },
    physical_expr::expressions::Literal,
};

use super::{as_inner, invalid};

/// DataFusion's function rounds the place between two values to a millionth. Here that is done for floats of 64 bits, which
/// all readings are, without.
pub(super) fn udaf() -> AggregateUDF {
    AggregateUDF::new_from_impl(PercentileCont { inner: percentile_cont_udaf() })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct PercentileCont {
    inner: Arc<AggregateUDF>,
}

/// Whether an aggregate is one of ours.
fn is_exact(args: &AccumulatorArgs<'_>) -> bool {
    !args.is_distinct && *args.expr_fields[0].data_type() == DataType::Float64
}

/// The constant share of values that are below the answer.
fn share(args: &AccumulatorArgs<'_>) -> Result<f64> {
    let constant = args.exprs.get(1).and_then(|share| share.downcast_ref::<Literal>());
    let share = match constant.map(Literal::value) {
        Some(ScalarValue::Float64(Some(share))) if (0.0..=1.0).contains(share) => *share,
        _ => return invalid("percentile_cont: the share is a constant from 0 to 1, as 0.95"),
    };
    let is_descending = args.order_bys.first().is_some_and(|order| order.options.descending);
    Ok(if is_descending { 1.0 - share } else { share })
}

impl AggregateUDFImpl for PercentileCont {
    as_inner! {
        state_fields(args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>>,
        groups_accumulator_supported(args: AccumulatorArgs<'_>) -> bool,
        simplify() -> Option<AggregateFunctionSimplification>,
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match is_exact(&args) {
            true => Ok(Box::new(Values { share: share(&args)?, values: Vec::new() })),
            false => self.inner.accumulator(args),
        }
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match is_exact(&args) {
            true => Ok(Box::new(Groups { share: share(&args)?, groups: Vec::new(), bytes: 0 })),
            false => self.inner.create_groups_accumulator(args),
        }
    }

    fn supports_within_group_clause(&self) -> bool {
        true
    }
}

/// The value below which a share of values lies, between two of them in proportion; `None` of none. Puts the values in another order.
fn percentile(values: &mut [f64], share: f64) -> Option<f64> {
    let place = share * values.len().checked_sub(1)? as f64;
    let (_, lower, above) = values.select_nth_unstable_by(place as usize, f64::total_cmp);
    let upper = above.iter().copied().min_by(f64::total_cmp).unwrap_or(*lower);
    Some(*lower + (upper - *lower) * place.fract())
}

/// Lists of values. Each is freed when it has been copied: together they may be most of a query's memory.
fn lists(lists: Vec<Vec<f64>>) -> ListArray {
    let item = Arc::new(Field::new_list_field(DataType::Float64, true));
    let offsets = OffsetBuffer::from_lengths(lists.iter().map(Vec::len));
    let mut values = Vec::with_capacity(lists.iter().map(Vec::len).sum());
    lists.into_iter().for_each(|list| values.extend_from_slice(&list));
    ListArray::new(item, offsets, Arc::new(Float64Array::from(values)), None)
}

/// The values of one group.
#[derive(Debug)]
struct Values {
    share: f64,
    values: Vec<f64>,
}

impl Accumulator for Values {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values.extend(values[0].as_primitive::<Float64Type>().iter().flatten());
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for list in states[0].as_list::<i32>().iter().flatten() {
            self.values.extend(list.as_primitive::<Float64Type>().values());
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::List(Arc::new(lists(vec![std::mem::take(&mut self.values)])))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(percentile(&mut self.values, self.share)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<f64>()
    }
}

/// The values of many groups.
#[derive(Debug)]
struct Groups {
    share: f64,
    groups: Vec<Vec<f64>>,
    /// What the values take.
    bytes: usize,
}

impl Groups {
    fn push(&mut self, group: usize, values: &[f64]) {
        let group = &mut self.groups[group];
        let before = group.capacity();
        group.extend_from_slice(values);
        self.bytes += (group.capacity() - before) * size_of::<f64>();
    }

    fn take(&mut self, emit_to: EmitTo) -> Vec<Vec<f64>> {
        let taken = emit_to.take_needed(&mut self.groups);
        self.bytes -= taken.iter().map(|group| group.capacity() * size_of::<f64>()).sum::<usize>();
        taken
    }
}

/// Whether a row counts.
fn counts(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        groups: usize,
    ) -> Result<()> {
        self.groups.resize_with(groups, Vec::new);
        let values = values[0].as_primitive::<Float64Type>();
        for (row, group) in group_indices.iter().enumerate() {
            if values.is_valid(row) && counts(filter, row) {
                self.push(*group, &[values.value(row)]);
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef], group_indices: &[usize], groups: usize) -> Result<()> {
        self.groups.resize_with(groups, Vec::new);
        for (list, group) in states[0].as_list::<i32>().iter().zip(group_indices) {
            if let Some(list) = list {
                self.push(*group, list.as_primitive::<Float64Type>().values());
            }
        }
        Ok(())
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![Arc::new(lists(self.take(emit_to)))])
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let answers = self.take(emit_to).into_iter().map(|mut values| percentile(&mut values, self.share));
        Ok(Arc::new(answers.collect::<Float64Array>()))
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = values[0].as_primitive::<Float64Type>();
        let is_taken = |row: usize| values.is_valid(row) && counts(filter, row);
        let taken: Float64Array =
            (0..values.len()).filter(|row| is_taken(*row)).map(|row| Some(values.value(row))).collect();
        let item = Arc::new(Field::new_list_field(DataType::Float64, true));
        let offsets = OffsetBuffer::from_lengths((0..values.len()).map(|row| usize::from(is_taken(row))));
        Ok(vec![Arc::new(ListArray::new(item, offsets, Arc::new(taken), None))])
    }

    fn size(&self) -> usize {
        self.bytes + self.groups.capacity() * size_of::<Vec<f64>>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the definition over sorted values, by way of states that are merged.
        #[test]
        fn it_lies_between_its_neighbours_in_proportion(
            rows in prop::collection::vec((prop::option::of(-1e6f64..1e6), 0usize..4, prop::option::of(any::<bool>())), 0..120),
            share in 0.0f64..=1.0, split in 0usize..120, is_filtered in any::<bool>(),
        ) {
            let split = split.min(rows.len());
            let array = |rows: &[(Option<f64>, usize, Option<bool>)]| -> [ArrayRef; 1] {
                [Arc::new(rows.iter().map(|row| row.0).collect::<Float64Array>())]
            };
            let filter = |rows: &[(Option<f64>, usize, Option<bool>)]| {
                is_filtered.then(|| rows.iter().map(|row| row.2).collect::<BooleanArray>())
            };
            let indices = |rows: &[(Option<f64>, usize, Option<bool>)]| rows.iter().map(|row| row.1).collect::<Vec<_>>();
            let (one, other) = rows.split_at(split);
            let new = || Groups { share, groups: Vec::new(), bytes: 0 };
            let mut partial = new();
            partial.update_batch(&array(one), &indices(one), filter(one).as_ref(), 4).expect("updated");
            let mut whole = new();
            whole.merge_batch(&partial.state(EmitTo::All).expect("state"), &[0, 1, 2, 3], 4).expect("merged");
            prop_assert_eq!(partial.bytes, 0);
            let converted = new().convert_to_state(&array(other), filter(other).as_ref()).expect("state");
            whole.merge_batch(&converted, &indices(other), 4).expect("merged");
            let found = whole.evaluate(EmitTo::All).expect("answer");
            let found = found.as_primitive::<Float64Type>();
            for group in 0..4 {
                let mut values: Vec<f64> = rows
                    .iter()
                    .filter(|row| row.1 == group && (!is_filtered || row.2 == Some(true)))
                    .filter_map(|row| row.0)
                    .collect();
                values.sort_by(f64::total_cmp);
                if values.is_empty() {
                    prop_assert!(found.is_null(group));
                    continue;
                }
                let place = share * (values.len() - 1) as f64;
                let (lower, upper) = (values[place.floor() as usize], values[place.ceil() as usize]);
                let expected = lower + (upper - lower) * (place - place.floor());
                prop_assert_eq!(found.value(group), expected);
                let mut single = Values { share, values: values.clone() };
                prop_assert_eq!(single.evaluate().expect("answer"), ScalarValue::Float64(Some(expected)));
            }
        }
    }
}

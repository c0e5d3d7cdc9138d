//! Aggregates of `measurements` from the totals that files have of their series.
//!
//! A total stands for all readings of a series in one unit and quality that a file holds, which are of one UTC month. It is used in
//! their place when all of them pass the filters and fall into one group, and none of them was deleted or corrected; what
//! is left is read as rows. So the answer is the same, but for the rounding of sums.

mod rule;
mod table;

pub(super) use rule::UseTotals;
pub(super) use table::SummedReadings;

#[cfg(test)]
mod tests;

//! What the readings of one entity amount to in one bucket. Plain arithmetic: no clock, no I/O.

use std::collections::BTreeMap;

use wattlake_catalog::Quality;
use wattlake_config::MetricKind;

use super::bucket::Buckets;

/// A raw row of one entity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Microseconds since 1970 UTC.
    pub ts: i64,
    pub value: f64,
    pub quality: Quality,
}

/// Which number is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aggregation {
    /// By the metric's kind: time-weighted mean, mean, sum or increase.
    Default,
    Avg,
    Sum,
    Min,
    Max,
    Count,
    First,
    Last,
    /// 50 or 95, exact, interpolated between the two samples next to it.
    Percentile(u8),
}

/// One entity in one bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cell {
    pub value: f64,
    /// Readings in the bucket.
    pub count: u64,
    pub estimated: u64,
}

/// How an entity's readings are to be understood.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub kind: MetricKind,
    pub aggregation: Aggregation,
    /// Microseconds between two readings, as configured.
    pub cadence: i64,
    /// The range asked for; samples around it only give what reaches into it.
    pub from: i64,
    pub to: i64,
}

/// A gauge's reading stands for this many cadences at most when the next one is missing.
pub(crate) const HOLD_CADENCES: i64 = 2;
/// A register that falls below this share of its last value was reset; a smaller fall is a glitch.
const RESET_BELOW: f64 = 0.5;

/// Accumulates samples that come in order of time.
#[derive(Clone, Debug, Default)]
struct Accumulator {
    count: u64,
    estimated: u64,
    sum: f64,
    min: Option<f64>,
    max: Option<f64>,
    first: Option<f64>,
    last: Option<f64>,
    /// Integral over covered time, and that time, in microseconds.
    weighted: f64,
    covered: f64,
    increase: f64,
    has_increase: bool,
    values: Vec<f64>,
}

/// Aggregates the samples of one entity, ordered by time, per bucket. Buckets without any readings are absent.
pub(crate) fn aggregate(samples: &[Sample], buckets: &Buckets, rules: &Rules) -> BTreeMap<usize, Cell> {
    let mut cells: BTreeMap<usize, Accumulator> = BTreeMap::new();
    let keeps_values = matches!(rules.aggregation, Aggregation::Percentile(_));
    for sample in samples.iter().filter(|sample| (rules.from..rules.to).contains(&sample.ts)) {
        let Some(index) = buckets.index(sample.ts) else { continue };
        let cell = cells.entry(index).or_default();
        cell.count += 1;
        cell.estimated += u64::from(sample.quality == Quality::Estimated);
        cell.sum += sample.value;
        cell.min = Some(cell.min.map_or(sample.value, |min| min.min(sample.value)));
        cell.max = Some(cell.max.map_or(sample.value, |max| max.max(sample.value)));
        cell.first.get_or_insert(sample.value);
        cell.last = Some(sample.value);
        if keeps_values {
            cell.values.push(sample.value);
        }
    }
    match (rules.kind, rules.aggregation) {
        (MetricKind::GaugeExtensive, Aggregation::Default | Aggregation::Avg) => {
            weigh_by_time(samples, buckets, rules, &mut cells);
        }
        (MetricKind::Register, Aggregation::Default | Aggregation::Sum) => {
            book_increases(samples, buckets, rules, &mut cells);
        }
        _ => {}
    }
    cells
        .into_iter()
        .filter_map(|(index, cell)| {
            let value = cell.value(rules)?;
            Some((index, Cell { value, count: cell.count, estimated: cell.estimated }))
        })
        .collect()
}

/// Each sample stands until the next one, at most [`HOLD_CADENCES`]; spans are split at bucket edges.
fn weigh_by_time(
    samples: &[Sample],
    buckets: &Buckets,
    rules: &Rules,
    cells: &mut BTreeMap<usize, Accumulator>,
) {
    let hold = rules.cadence * HOLD_CADENCES;
    for (i, sample) in samples.iter().enumerate() {
        // The last sample is taken to stand for one cadence: nothing says more.
        let next = samples.get(i + 1).map_or(sample.ts + rules.cadence, |next| next.ts);
        let end = next.min(sample.ts + hold).min(rules.to);
        let mut start = sample.ts.max(rules.from);
        while start < end {
            let Some(index) = buckets.index(start) else { break };
            let stop = end.min(buckets.edges[index + 1]);
            // A span that only reaches into a bucket without readings of its own does not make it one.
            if let Some(cell) = cells.get_mut(&index) {
                let span = (stop - start) as f64;
                cell.weighted += sample.value * span;
                cell.covered += span;
            }
            start = stop;
        }
    }
}

/// Books each increase where its interval begins. Across a gap it is spread evenly and counts as estimated.
fn book_increases(
    samples: &[Sample],
    buckets: &Buckets,
    rules: &Rules,
    cells: &mut BTreeMap<usize, Accumulator>,
) {
    let hold = rules.cadence * HOLD_CADENCES;
    let mut previous: Option<Sample> = None;
    for sample in samples {
        let Some(before) = previous else {
            previous = Some(*sample);
            continue;
        };
        let step = if sample.value >= before.value {
            sample.value - before.value
        } else if sample.value < before.value * RESET_BELOW {
            sample.value
        } else {
            // A glitch: the register is taken up again where it was.
            continue;
        };
        previous = Some(*sample);
        let span = sample.ts - before.ts;
        if span <= hold {
            if (rules.from..rules.to).contains(&before.ts)
                && let Some(index) = buckets.index(before.ts)
            {
                let cell = cells.entry(index).or_default();
                cell.increase += step;
                cell.has_increase = true;
            }
            continue;
        }
        let (mut start, end) = (before.ts.max(rules.from), sample.ts.min(rules.to));
        while start < end {
            let Some(index) = buckets.index(start) else { break };
            let stop = end.min(buckets.edges[index + 1]);
            let cell = cells.entry(index).or_default();
            cell.increase += step * ((stop - start) as f64 / span as f64);
            cell.has_increase = true;
            cell.estimated += 1;
            start = stop;
        }
    }
}

impl Accumulator {
    fn value(&self, rules: &Rules) -> Option<f64> {
        let mean = || (self.count > 0).then(|| self.sum / self.count as f64);
        match rules.aggregation {
            Aggregation::Default => match rules.kind {
                MetricKind::GaugeExtensive => self.time_weighted().or_else(mean),
                MetricKind::GaugeIntensive => mean(),
                MetricKind::Interval => (self.count > 0).then_some(self.sum),
                MetricKind::Register => self.has_increase.then_some(self.increase),
            },
            Aggregation::Avg if rules.kind == MetricKind::GaugeExtensive => {
                self.time_weighted().or_else(mean)
            }
            Aggregation::Avg => mean(),
            Aggregation::Sum if rules.kind == MetricKind::Register => {
                self.has_increase.then_some(self.increase)
            }
            Aggregation::Sum => (self.count > 0).then_some(self.sum),
            Aggregation::Min => self.min,
            Aggregation::Max => self.max,
            Aggregation::Count => Some(self.count as f64),
            Aggregation::First => self.first,
            Aggregation::Last => self.last,
            Aggregation::Percentile(p) => percentile(&self.values, p),
        }
    }

    fn time_weighted(&self) -> Option<f64> {
        (self.covered > 0.0).then(|| self.weighted / self.covered)
    }
}

/// The percentile with linear interpolation between closest ranks.
fn percentile(values: &[f64], p: u8) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len().checked_sub(1)?) as f64 * f64::from(p) / 100.0;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    Some(low + (high - low) * rank.fract())
}

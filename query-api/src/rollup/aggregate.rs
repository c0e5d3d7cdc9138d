//! What the readings of one entity amount to in one bucket. Plain arithmetic: no clock, no I/O.

use std::collections::BTreeMap;

use wattlake_catalog::Quality;
use wattlake_config::MetricKind;
/// A raw row of one entity.
pub(crate) use wattlake_engine::StoredReading as Sample;
use wattlake_engine::{HOLD_CADENCES, Point, Register, Step, Summary};

use super::bucket::Buckets;

/// What an entity's readings are given as, in order of time: one by one, or summed up where all of them lie in one bucket, or
/// outside of the range asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Item<'a> {
    Row(Sample),
    Summary(&'a Summary),
}

impl Item<'_> {
    pub(super) fn first(&self) -> Point {
        match self {
            Self::Row(Sample { ts, value, .. }) => Point { ts: *ts, value: *value },
            Self::Summary(summary) => summary.first,
        }
    }

    pub(super) fn last(&self) -> Point {
        match self {
            Self::Row(_) => self.first(),
            Self::Summary(summary) => summary.last,
        }
    }
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

/// What is known of the buckets that have something, in order, while readings are gone through in order of time: most often the one
/// asked for is that of the time before, or the next.
struct Accumulators<'a> {
    buckets: &'a Buckets,
    /// The bucket asked for last, and the place of what is known of it.
    bucket: usize,
    place: usize,
    known: Vec<(usize, Accumulator)>,
}

impl<'a> Accumulators<'a> {
    fn new(buckets: &'a Buckets) -> Self {
        Self { buckets, bucket: 0, place: 0, known: Vec::new() }
    }

    /// The bucket that holds an instant, and where it ends.
    fn bucket(&mut self, ts: i64) -> Option<(usize, i64)> {
        let holds = |bucket: &usize| match self.buckets.edges.get(*bucket..bucket + 2) {
            Some([start, end]) => (*start..*end).contains(&ts),
            _ => false,
        };
        let near = [self.bucket, self.bucket + 1].into_iter().find(holds);
        self.bucket = near.or_else(|| self.buckets.index(ts))?;
        Some((self.bucket, self.buckets.edges[self.bucket + 1]))
    }

    /// The place of what is known of a bucket, or where that would come.
    fn find(&mut self, bucket: usize) -> Result<usize, usize> {
        let is_it = |place: &usize| self.known.get(*place).is_some_and(|(known, _)| *known == bucket);
        match [self.place, self.place + 1].into_iter().find(is_it) {
            Some(place) => Ok(place),
            None => self.known.binary_search_by_key(&bucket, |(known, _)| *known),
        }
    }

    fn get(&mut self, bucket: usize) -> Option<&mut Accumulator> {
        self.place = self.find(bucket).ok()?;
        self.known.get_mut(self.place).map(|(_, accumulator)| accumulator)
    }

    fn entry(&mut self, bucket: usize) -> &mut Accumulator {
        self.place = self.find(bucket).unwrap_or_else(|place| {
            self.known.insert(place, (bucket, Accumulator::default()));
            place
        });
        &mut self.known[self.place].1
    }
}

/// Aggregates the readings of one entity per bucket. Buckets without any readings are absent. `None`: one of the summaries does
/// not say enough, its rows are needed.
pub(crate) fn aggregate(
    items: &[Item<'_>],
    buckets: &Buckets,
    rules: &Rules,
) -> Option<BTreeMap<usize, Cell>> {
    let mut cells = Accumulators::new(buckets);
    let keeps_values = matches!(rules.aggregation, Aggregation::Percentile(_));
    for item in items.iter().filter(|item| rules.holds(item)) {
        let Some((bucket, _)) = cells.bucket(item.first().ts) else { continue };
        let cell = cells.entry(bucket);
        match item {
            Item::Row(sample) => {
                cell.add_row(sample);
                if keeps_values {
                    cell.values.push(sample.value);
                }
            }
            Item::Summary(summary) => cell.add_summary(summary),
        }
    }
    match (rules.kind, rules.aggregation) {
        (MetricKind::GaugeExtensive, Aggregation::Default | Aggregation::Avg) => {
            weigh_by_time(items, rules, &mut cells);
        }
        (MetricKind::Register, Aggregation::Default | Aggregation::Sum) => {
            book_increases(items, rules, &mut cells)?;
        }
        _ => {}
    }
    let cells = cells.known.into_iter().filter_map(|(index, cell)| {
        let value = cell.value(rules)?;
        Some((index, Cell { value, count: cell.count, estimated: cell.estimated }))
    });
    Some(cells.collect())
}

impl Rules {
    /// Whether a reading counts, or only gives what reaches into the range.
    fn holds(&self, item: &Item<'_>) -> bool {
        (self.from..self.to).contains(&item.first().ts)
    }
}

/// Each sample stands until the next one, at most [`HOLD_CADENCES`]; spans are split at bucket edges.
fn weigh_by_time(items: &[Item<'_>], rules: &Rules, cells: &mut Accumulators<'_>) {
    let hold = rules.cadence * HOLD_CADENCES;
    for (i, item) in items.iter().enumerate() {
        if let Item::Summary(summary) = item
            && rules.holds(item)
            && let Some((bucket, _)) = cells.bucket(summary.first.ts)
            && let Some(cell) = cells.get(bucket)
        {
            cell.weighted += summary.weighted;
            cell.covered += summary.covered as f64;
        }
        let last = item.last();
        let next = items.get(i + 1).map_or(i64::MAX, |next| next.first().ts);
        let end = next.min(last.ts + hold).min(rules.to);
        let mut start = last.ts.max(rules.from);
        while start < end {
            let Some((bucket, until)) = cells.bucket(start) else { break };
            let stop = end.min(until);
            // A span that only reaches into a bucket without readings of its own does not make it one.
            if let Some(cell) = cells.get(bucket) {
                let span = (stop - start) as f64;
                cell.weighted += last.value * span;
                cell.covered += span;
            }
            start = stop;
        }
    }
}

/// Books each increase where its interval begins. Across a gap it is spread evenly and counts as estimated. `None` when a summary
/// begins or ends with a smaller fall: readings around it decide whether it is a glitch.
fn book_increases(items: &[Item<'_>], rules: &Rules, cells: &mut Accumulators<'_>) -> Option<()> {
    let mut register = Register::default();
    for item in items {
        match item {
            Item::Row(_) => register.push(item.first()),
            Item::Summary(summary) => {
                if summary.register.ts != summary.last.ts {
                    return None;
                }
                register.jump(summary.first, summary.last)?;
                if let Some(increase) = summary.increase
                    && rules.holds(item)
                    && let Some((bucket, _)) = cells.bucket(summary.first.ts)
                {
                    cells.entry(bucket).add_increase(increase, summary.gaps);
                }
            }
        }
        register.steps().for_each(|step| book(step, rules, cells));
    }
    register.finish();
    register.steps().for_each(|step| book(step, rules, cells));
    Some(())
}

fn book(step: Step, rules: &Rules, cells: &mut Accumulators<'_>) {
    let (from, to) = (step.from.ts, step.to.ts);
    let span = to - from;
    if span <= rules.cadence * HOLD_CADENCES {
        if (rules.from..rules.to).contains(&from)
            && let Some((bucket, _)) = cells.bucket(from)
        {
            cells.entry(bucket).add_increase(step.increase, 0);
        }
        return;
    }
    let (mut start, end) = (from.max(rules.from), to.min(rules.to));
    while start < end {
        let Some((bucket, until)) = cells.bucket(start) else { break };
        let stop = end.min(until);
        let share = (stop - start) as f64 / span as f64;
        cells.entry(bucket).add_increase(step.increase * share, 1);
        start = stop;
    }
}

impl Accumulator {
    fn add_row(&mut self, sample: &Sample) {
        self.count += 1;
        self.estimated += u64::from(sample.quality == Quality::Estimated);
        self.sum += sample.value;
        self.extremes(sample.value, sample.value);
        self.first.get_or_insert(sample.value);
        self.last = Some(sample.value);
    }

    fn add_summary(&mut self, summary: &Summary) {
        self.count += summary.count;
        self.estimated += summary.estimated;
        self.sum += summary.sum;
        self.extremes(summary.min, summary.max);
        self.first.get_or_insert(summary.first.value);
        self.last = Some(summary.last.value);
    }

    fn add_increase(&mut self, increase: f64, estimated: u64) {
        self.increase += increase;
        self.has_increase = true;
        self.estimated += estimated;
    }

    fn extremes(&mut self, min: f64, max: f64) {
        self.min = Some(self.min.map_or(min, |known| known.min(min)));
        self.max = Some(self.max.map_or(max, |known| known.max(max)));
    }

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

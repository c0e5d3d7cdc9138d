//! `time_bucket(width, timestamp [, zone])`: the start of the bucket that holds a time, in the calendar of a zone (ROLL-2).

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{AsArray, PrimitiveBuilder, TimestampMicrosecondArray},
    datatypes::{DataType, IntervalMonthDayNano, TimestampMicrosecondType},
};
use datafusion::{
    common::ScalarValue,
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
};
use jiff::{Timestamp, tz::TimeZone};

use super::{invalid, is_time, text_of, utc_micros};
use crate::rollup::{Buckets, Width};

pub(super) fn udf() -> ScalarUDF {
    ScalarUDF::new_from_impl(TimeBucket { signature: Signature::user_defined(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeBucket {
    signature: Signature,
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &'static str {
        "time_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(utc_micros())
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let usage = "write time_bucket(width, timestamp [, zone]), as in time_bucket('1d', timestamp, 'Europe/Berlin')";
        let (width, time, zone) = match types {
            [width, time] => (width, time, None),
            [width, time, zone] => (width, time, Some(zone)),
            _ => return invalid(usage),
        };
        let width = match width {
            DataType::Interval(_) => DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano),
            text if text.is_string() => DataType::Utf8,
            _ => return invalid(format!("the width is a text or an interval; {usage}")),
        };
        if !is_time(time) || zone.is_some_and(|zone| !zone.is_string() && !zone.is_null()) {
            return invalid(usage);
        }
        Ok([width, utc_micros()].into_iter().chain(zone.map(|_| DataType::Utf8)).collect())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ColumnarValue::Scalar(width) = &args.args[0] else {
            return invalid("time_bucket: the width is a constant");
        };
        let Some(width) = width_of(width)? else {
            return Ok(ScalarValue::TimestampMicrosecond(None, Some("UTC".into())).into());
        };
        let is_scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if is_scalar { 1 } else { args.number_rows };
        let times = args.args[1].to_array(rows)?;
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let starts = match args.args.get(2) {
            None => in_zone(width, times, &TimeZone::UTC)?,
            Some(ColumnarValue::Scalar(zone)) => match text_of(zone) {
                Some(zone) => in_zone(width, times, &zone_of(zone)?)?,
                None => TimestampMicrosecondArray::new_null(times.len()),
            },
            Some(ColumnarValue::Array(zones)) => in_zones(width, times, zones.as_string())?,
        };
        let starts = starts.with_timezone("UTC");
        Ok(if is_scalar {
            ScalarValue::try_from_array(&starts, 0)?.into()
        } else {
            ColumnarValue::Array(Arc::new(starts))
        })
    }
}

/// A width that is a text, as in rollups, or an interval of months, of days, or of less.
pub(in crate::sql) fn width_of(value: &ScalarValue) -> Result<Option<Width>> {
    if value.is_null() {
        return Ok(None);
    }
    let width = match value {
        ScalarValue::IntervalMonthDayNano(Some(interval)) => width_of_interval(*interval),
        text => text_of(text).and_then(width_of_text).filter(|width| *width != Width::All),
    };
    match width {
        Some(width) => Ok(Some(width)),
        None => invalid(format!(
            "time_bucket: {value} is not a width; write 5m, 15m, 1h, 1d, 1w, 1mo or 1y, or an interval of whole seconds, days or months"
        )),
    }
}

/// `15m` as in rollups, or `15 minutes`.
fn width_of_text(text: &str) -> Option<Width> {
    let Some((number, unit)) = text.trim().split_once(' ') else { return text.parse().ok() };
    let unit = match unit.trim().trim_end_matches('s') {
        "minute" | "min" => "m",
        "hour" => "h",
        "day" => "d",
        "week" => "w",
        "month" | "mon" => "mo",
        "year" => "y",
        _ => return None,
    };
    format!("{number}{unit}").parse().ok()
}

fn width_of_interval(interval: IntervalMonthDayNano) -> Option<Width> {
    const SECOND: i64 = 1_000_000_000;
    match (interval.months, interval.days, interval.nanoseconds) {
        (months @ 1.., 0, 0) if months % 12 == 0 => Some(Width::Years(months / 12)),
        (months @ 1.., 0, 0) => Some(Width::Months(months)),
        (0, days @ 1.., 0) if days % 7 == 0 => Some(Width::Weeks(days / 7)),
        (0, days @ 1.., 0) => Some(Width::Days(days)),
        (0, 0, nanos) if nanos >= SECOND && nanos % SECOND == 0 => Some(Width::Fixed(nanos / SECOND)),
        _ => None,
    }
}

fn zone_of(name: &str) -> Result<TimeZone> {
    TimeZone::get(name)
        .or_else(|_| invalid(format!("time_bucket: `{name}` is not a time zone; write one as Europe/Berlin")))
}

fn in_zone(
    width: Width,
    times: &TimestampMicrosecondArray,
    zone: &TimeZone,
) -> Result<TimestampMicrosecondArray> {
    let mut starts = Starts::new(width, times.iter().flatten(), zone)?;
    Ok(times.iter().map(|time| time.map(|time| starts.of(time))).collect())
}

fn in_zones(
    width: Width,
    times: &TimestampMicrosecondArray,
    zones: &arrow::array::StringArray,
) -> Result<TimestampMicrosecondArray> {
    let mut by_zone: HashMap<&str, Vec<i64>> = HashMap::new();
    let pairs = || times.iter().zip(zones).map(|(time, zone)| Some((time?, zone?)));
    for (time, zone) in pairs().flatten() {
        by_zone.entry(zone).or_default().push(time);
    }
    let mut starts = HashMap::with_capacity(by_zone.len());
    for (zone, times) in by_zone {
        starts.insert(zone, Starts::new(width, times.into_iter(), &zone_of(zone)?)?);
    }
    let mut out = PrimitiveBuilder::<TimestampMicrosecondType>::with_capacity(times.len());
    for pair in pairs() {
        out.append_option(pair.and_then(|(time, zone)| Some(starts.get_mut(zone)?.of(time))));
    }
    Ok(out.finish())
}

/// The starts of buckets, of which neighbouring times share one.
enum Starts {
    /// Microseconds.
    Fixed(i64),
    Calendar {
        edges: Vec<i64>,
        at: usize,
    },
}

impl Starts {
    fn new(width: Width, times: impl Iterator<Item = i64>, zone: &TimeZone) -> Result<Self> {
        if let Width::Fixed(seconds) = width {
            return Ok(Self::Fixed(seconds * 1_000_000));
        }
        let bounds = times.fold(None, |bounds: Option<(i64, i64)>, time| {
            Some(bounds.map_or((time, time), |(low, high)| (low.min(time), high.max(time))))
        });
        let Some((low, high)) = bounds else { return Ok(Self::Calendar { edges: Vec::new(), at: 0 }) };
        let instant = |micros| {
            Timestamp::from_microsecond(micros)
                .map_err(|error| DataFusionError::Execution(format!("time_bucket: {error}")))
        };
        let buckets = Buckets::new(width, instant(low)?, instant(high.saturating_add(1))?, zone)
            .map_err(|error| DataFusionError::Execution(format!("time_bucket: {error}")))?;
        Ok(Self::Calendar { edges: buckets.edges, at: 0 })
    }

    /// The start of the bucket of one of the times it was made for.
    fn of(&mut self, time: i64) -> i64 {
        match self {
            Self::Fixed(step) => time.saturating_sub(time.rem_euclid(*step)),
            Self::Calendar { edges, at } => {
                let is_same = edges[*at] <= time && edges.get(*at + 1).is_none_or(|end| time < *end);
                if !is_same {
                    *at = edges.partition_point(|edge| *edge <= time).saturating_sub(1);
                }
                edges[*at]
            }
        }
    }
}

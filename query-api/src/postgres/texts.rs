//! Times and numbers in the text form of Postgres, a column at a time.

use std::{fmt::Write, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray},
    compute::cast,
    datatypes::{DataType, Field, Float32Type, Float64Type, Schema, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use jiff::Timestamp;
use pgwire::api::results::{FieldFormat, FieldInfo};

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// Length of a time or number, about.
const TEXT_BYTES: usize = 24;

/// A batch whose columns of times and floating-point numbers are texts, where these are sent as texts. Times of other zones than UTC,
/// and such that have no year of four digits, stay as they are.
pub(super) fn written(fields: &[FieldInfo], batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let texts = batch.columns().iter().zip(fields).map(|(column, field)| match field.format() {
        FieldFormat::Text => to_texts(column),
        FieldFormat::Binary => Ok(None),
    });
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    if texts.iter().all(Option::is_none) {
        return Ok(batch);
    }
    let (mut columns, mut types) = (Vec::new(), Vec::new());
    for ((column, field), text) in batch.columns().iter().zip(schema.fields()).zip(texts) {
        match text {
            Some(text) => {
                types.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
                columns.push(Arc::new(text) as ArrayRef);
            }
            None => {
                types.push(Arc::clone(field));
                columns.push(Arc::clone(column));
            }
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(types)), columns)
}

fn to_texts(column: &ArrayRef) -> Result<Option<StringArray>, ArrowError> {
    Ok(match column.data_type() {
        DataType::Timestamp(_, zone) if zone.as_ref().is_none_or(|zone| &**zone == "UTC") => {
            let micros = cast(column, &DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
            times(micros.as_primitive::<TimestampMicrosecondType>(), if zone.is_some() { "+00" } else { "" })
        }
        DataType::Float64 => {
            let numbers = column.as_primitive::<Float64Type>();
            Some(numbers_of(numbers.iter(), column.len(), |text, n| write_number(text, n, 15)))
        }
        DataType::Float32 => {
            let numbers = column.as_primitive::<Float32Type>();
            Some(numbers_of(numbers.iter(), column.len(), |text, n| write_number(text, n, 6)))
        }
        _ => None,
    })
}

/// As `2026-03-01 12:30:00.25+00`. `None`: one of them has no year of four digits.
fn times(micros: &TimestampMicrosecondArray, zone: &str) -> Option<StringArray> {
    let mut texts = StringBuilder::with_capacity(micros.len(), micros.len() * TEXT_BYTES);
    let (mut text, mut date, mut day) = (String::new(), String::new(), None);
    for time in micros {
        let Some(time) = time else {
            texts.append_null();
            continue;
        };
        // Times that follow each other are most often of one day.
        let (of_day, in_day) = (time.div_euclid(DAY), time.rem_euclid(DAY));
        if day != Some(of_day) {
            let start = Timestamp::from_microsecond(of_day * DAY).ok()?;
            let civil = start.to_zoned(jiff::tz::TimeZone::UTC).date();
            if civil.year() < 1 {
                return None;
            }
            date = civil.to_string();
            day = Some(of_day);
        }
        text.clear();
        text.push_str(&date);
        let seconds = in_day / SECOND;
        for (separator, part) in [(' ', seconds / 3600), (':', seconds / 60 % 60), (':', seconds % 60)] {
            text.push(separator);
            text.push(char::from(b'0' + (part / 10) as u8));
            text.push(char::from(b'0' + (part % 10) as u8));
        }
        let fraction = in_day % SECOND;
        if fraction != 0 {
            let _ = write!(text, ".{fraction:06}");
            text.truncate(text.trim_end_matches('0').len());
        }
        text.push_str(zone);
        texts.append_value(&text);
    }
    Some(texts.finish())
}

fn numbers_of<T>(
    numbers: impl Iterator<Item = Option<T>>,
    count: usize,
    write: impl Fn(&mut String, T),
) -> StringArray {
    let mut texts = StringBuilder::with_capacity(count, count * TEXT_BYTES);
    let mut text = String::new();
    for number in numbers {
        match number {
            Some(number) => {
                text.clear();
                write(&mut text, number);
                texts.append_value(&text);
            }
            None => texts.append_null(),
        }
    }
    texts.finish()
}

/// The fewest digits that tell the number from all others of its type; with an exponent of two digits and more below 0.0001 and from
/// ten to the power of `wide` on.
fn write_number<T: ryu::Float + Into<f64> + Copy>(text: &mut String, number: T, wide: i32) {
    let wider: f64 = number.into();
    if wider.is_nan() {
        return text.push_str("NaN");
    }
    if wider.is_infinite() {
        return text.push_str(if wider < 0.0 { "-Infinity" } else { "Infinity" });
    }
    let mut buffer = ryu::Buffer::new();
    let shortest = buffer.format_finite(number);
    let size = wider.abs();
    if size == 0.0 || (1e-4..10f64.powi(wide)).contains(&size) && !shortest.contains('e') {
        text.push_str(shortest.strip_suffix(".0").unwrap_or(shortest));
        return;
    }
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let digits = mantissa.trim_start_matches('-');
    let whole = digits.find('.').unwrap_or(digits.len()) as i32;
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    let leading = digits.len() - digits.trim_start_matches('0').len();
    // The number is 0.digits times ten to the power of `point`.
    let point = whole + exponent.parse::<i32>().unwrap_or(0) - leading as i32;
    let digits = digits.trim_matches('0');
    if wider < 0.0 {
        text.push('-');
    }
    let (first, rest) = digits.split_at(digits.len().min(1));
    let dot = if rest.is_empty() { "" } else { "." };
    let exponent = point - 1;
    let sign = if exponent < 0 { '-' } else { '+' };
    let _ = write!(text, "{first}{dot}{rest}e{sign}{:02}", exponent.abs());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_postgres_does() {
        for (number, text) in [
            (99.0, "99"),
            (-0.5, "-0.5"),
            (0.0, "0"),
            (-0.0, "-0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.5e-7, "-1.5e-07"),
            (123_456_789_012_345.0, "123456789012345"),
            (999_999_999_999_999.9, "999999999999999.9"),
            (1e15, "1e+15"),
            (1.234_567_890_123_456_8e17, "1.2345678901234568e+17"),
            (-805_138_848_010_533.2, "-805138848010533.2"),
            (5e-324, "5e-324"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            let mut found = String::new();
            write_number(&mut found, number, 15);
            assert_eq!(found, text);
        }
        for (number, text) in [(0.1f32, "0.1"), (123_456.0, "123456"), (1e6, "1e+06"), (1.25e-9, "1.25e-09")]
        {
            let mut found = String::new();
            write_number(&mut found, number, 6);
            assert_eq!(found, text);
        }
    }

    #[test]
    fn times_are_written_as_postgres_does() {
        let text = |micros: i64, zone: &str| {
            times(&TimestampMicrosecondArray::from(vec![micros]), zone).map(|texts| texts.value(0).to_owned())
        };
        for (micros, expected) in [
            (1_772_368_200_000_000, "2026-03-01 12:30:00+00"),
            (1_772_368_200_250_000, "2026-03-01 12:30:00.25+00"),
            (1_772_368_200_000_001, "2026-03-01 12:30:00.000001+00"),
            (-1, "1969-12-31 23:59:59.999999+00"),
            (-62_135_596_800_000_000, "0001-01-01 00:00:00+00"),
        ] {
            assert_eq!(text(micros, "+00").as_deref(), Some(expected));
        }
        assert_eq!(text(0, "").as_deref(), Some("1970-01-01 00:00:00"));
        assert_eq!(text(-62_135_596_800_000_001, "+00"), None, "a year before the first");
        assert_eq!(text(i64::MAX, "+00"), None);
    }
}

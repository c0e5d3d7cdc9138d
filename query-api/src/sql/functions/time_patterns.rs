//! `to_timestamp`, `to_date` and `to_char` with patterns as Postgres writes them (`YYYY-MM-DD HH24:MI:SS`): BI tools send these.
//! DataFusion's own are those of `strftime` (`%Y-%m-%d`), and go on working.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{ScalarValue, config::ConfigOptions},
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl},
};

use super::{as_inner, text_of};

/// Postgres' template patterns and those of `strftime` that mean the same; of two that begin alike the longer one is first.
/// <https://www.postgresql.org/docs/16/functions-formatting.html>
const PATTERNS: [(&str, &str); 29] = [
    ("HH24", "%H"),
    ("HH12", "%I"),
    ("HH", "%I"),
    ("MI", "%M"),
    ("SS", "%S"),
    ("MS", "%3f"),
    ("US", "%6f"),
    ("AM", "%p"),
    ("PM", "%p"),
    ("IYYY", "%G"),
    ("IW", "%V"),
    ("IDDD", "%j"),
    ("ID", "%u"),
    ("YYYY", "%Y"),
    ("YY", "%y"),
    ("MONTH", "%B"),
    ("MON", "%b"),
    ("MM", "%m"),
    ("DDD", "%j"),
    ("DD", "%d"),
    ("DAY", "%A"),
    ("DY", "%a"),
    ("Q", "%q"),
    ("TZH:TZM", "%:z"),
    ("TZH", "%z"),
    ("TZ", "%Z"),
    ("OF", "%:z"),
    ("FF3", "%3f"),
    ("FF6", "%6f"),
];
/// Before another pattern: without zeros in front.
const NO_ZEROS: &str = "FM";

pub(super) fn udfs() -> impl Iterator<Item = ScalarUDF> {
    use datafusion::functions::datetime;
    [datetime::to_timestamp(&ConfigOptions::new()), datetime::to_date(), datetime::to_char()]
        .into_iter()
        .map(|inner| ScalarUDF::new_from_impl(WithPatterns { inner }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct WithPatterns {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for WithPatterns {
    as_inner! {}

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = Arc::new(self.inner.inner().with_updated_config(config)?);
        Some(ScalarUDF::new_from_impl(Self { inner }))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let has_no_zone = args.args.first().is_some_and(|time| {
            matches!(time.data_type(), DataType::Timestamp(_, None) | DataType::Date32 | DataType::Date64)
        });
        for pattern in args.args.iter_mut().skip(1) {
            let ColumnarValue::Scalar(value) = pattern else { continue };
            let Some(text) = text_of(value) else { continue };
            let text = match text.contains('%') {
                true => text.to_owned(),
                false => strftime(self.name(), text)?,
            };
            if has_no_zone && ["%z", "%:z", "%Z"].iter().any(|zone| text.contains(zone)) {
                return Err(DataFusionError::Plan(format!(
                    "{}: the pattern asks for a zone, and the time has none; write for example x AT TIME ZONE 'UTC'",
                    self.name()
                )));
            }
            *value = ScalarValue::from(text);
        }
        self.inner.invoke_with_args(args)
    }
}

/// A pattern of Postgres in the words of `strftime`.
fn strftime(function: &str, pattern: &str) -> Result<String> {
    let mut out = String::new();
    let mut rest = pattern;
    let mut without_zeros = false;
    'next: while let Some(char) = rest.chars().next() {
        if char == '"' {
            let (text, after) = rest[1..].split_once('"').unwrap_or((&rest[1..], ""));
            out.push_str(text);
            rest = after;
            continue;
        }
        let starts_with =
            |word: &str| rest.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
        if starts_with(NO_ZEROS) {
            without_zeros = true;
            rest = &rest[NO_ZEROS.len()..];
            continue;
        }
        for (postgres, ours) in PATTERNS {
            if starts_with(postgres) {
                let is_padded = ["%d", "%m", "%H", "%I", "%M", "%S", "%j", "%V", "%y", "%Y"].contains(&ours);
                match std::mem::take(&mut without_zeros) && is_padded {
                    true => out.extend(["%-", &ours[1..]]),
                    false => out.push_str(ours),
                }
                rest = &rest[postgres.len()..];
                continue 'next;
            }
        }
        let is_separator = !char.is_alphanumeric() || (char == 'T' && out.ends_with("%d"));
        if !is_separator {
            return Err(DataFusionError::Plan(format!(
                "{function}: `{rest}` of the pattern `{pattern}` is not known; write for example YYYY-MM-DD HH24:MI:SS or %Y-%m-%d %H:%M:%S"
            )));
        }
        out.push(char);
        rest = &rest[char.len_utf8()..];
    }
    Ok(out)
}

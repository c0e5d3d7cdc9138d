//! `to_timestamp`, `to_date` and `to_char` with patterns as Postgres writes them (`YYYY-MM-DD HH24:MI:SS`): BI tools send these.
//! DataFusion's own are those of `strftime` (`%Y-%m-%d`), and go on working.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    common::{ScalarValue, config::ConfigOptions},
    error::{DataFusionError, Result},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature},
};

use super::text_of;

/// Postgres' template patterns and those of `strftime` that mean the same; of two that begin alike the longer one is first.
/// <https://www.postgresql.org/docs/16/functions-formatting.html>
const PATTERNS: [(&str, &str); 30] = [
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
    // Without blanks and zeros before: as our names are anyway.
    ("FM", ""),
];

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
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = Arc::new(self.inner.inner().with_updated_config(config)?);
        Some(ScalarUDF::new_from_impl(Self { inner }))
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        for pattern in args.args.iter_mut().skip(1) {
            if let ColumnarValue::Scalar(value) = pattern
                && let Some(text) = text_of(value)
                && !text.contains('%')
            {
                *value = ScalarValue::from(strftime(self.name(), text)?);
            }
        }
        self.inner.invoke_with_args(args)
    }
}

/// A pattern of Postgres in the words of `strftime`.
fn strftime(function: &str, pattern: &str) -> Result<String> {
    let mut out = String::new();
    let mut rest = pattern;
    'next: while let Some(char) = rest.chars().next() {
        if char == '"' {
            let (text, after) = rest[1..].split_once('"').unwrap_or((&rest[1..], ""));
            out.push_str(text);
            rest = after;
            continue;
        }
        for (postgres, ours) in PATTERNS {
            if rest.get(..postgres.len()).is_some_and(|start| start.eq_ignore_ascii_case(postgres)) {
                out.push_str(ours);
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

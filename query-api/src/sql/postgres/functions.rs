//! Functions that clients of Postgres call when they connect or look around.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, StringArray, StringBuilder},
    compute::cast,
    datatypes::DataType,
};
use datafusion::{
    common::ScalarValue,
    error::Result,
    logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
        create_udf,
    },
};

use super::{SERVER_VERSION, setting};

pub(super) fn all() -> Vec<ScalarUDF> {
    let version = format!("PostgreSQL {SERVER_VERSION} (Wattlake {})", env!("CARGO_PKG_VERSION"));
    let known = [
        ("version", ScalarValue::from(version.as_str())),
        ("pg_is_in_recovery", ScalarValue::from(false)),
        ("pg_advisory_unlock_all", ScalarValue::from("")),
        ("txid_current", ScalarValue::from(1i64)),
    ];
    // There are no comments, indexes, triggers, sequences, views or functions of the user's.
    let unknown = [
        "col_description",
        "inet_client_addr",
        "inet_server_addr",
        "obj_description",
        "pg_get_function_arguments",
        "pg_get_function_identity_arguments",
        "pg_get_function_result",
        "pg_get_indexdef",
        "pg_get_ruledef",
        "pg_get_serial_sequence",
        "pg_get_triggerdef",
        "pg_get_viewdef",
        "pg_tablespace_location",
        "shobj_description",
    ];
    // Nothing is hidden by the search path.
    let visible = ["collation", "conversion", "function", "opclass", "operator", "opfamily", "type"];
    let constants = known
        .into_iter()
        .map(|(name, value)| constant(name.to_owned(), value))
        .chain(unknown.map(|name| constant(name.to_owned(), ScalarValue::Utf8(None))))
        .chain(visible.map(|what| constant(format!("pg_{what}_is_visible"), ScalarValue::from(true))));
    let json = ScalarUDF::new_from_impl(JsonBuildObject {
        signature: Signature::variadic_any(Volatility::Immutable),
    });
    constants.chain([current_setting(), to_regtype(), like_escape(), json]).collect()
}

fn constant(name: String, value: ScalarValue) -> ScalarUDF {
    let any = vec![TypeSignature::Nullary, TypeSignature::VariadicAny];
    ScalarUDF::new_from_impl(Constant { name, value, signature: Signature::one_of(any, Volatility::Stable) })
}

/// The same answer to all questions.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: String,
    value: ScalarValue,
    signature: Signature,
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.value.data_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }
}

/// Settings are those of a new connection.
fn current_setting() -> ScalarUDF {
    let answer = |args: &[ColumnarValue]| -> Result<ColumnarValue> {
        let names = ColumnarValue::values_to_arrays(args)?;
        let values: StringArray = names[0]
            .as_string::<i32>()
            .iter()
            .map(|name| name.and_then(|name| setting(&name.to_ascii_lowercase())))
            .collect();
        Ok(ColumnarValue::Array(Arc::new(values) as ArrayRef))
    };
    create_udf("current_setting", vec![DataType::Utf8], DataType::Utf8, Volatility::Stable, Arc::new(answer))
}

/// The object id of a type by its name; null for one that there is not, like those of extensions.
fn to_regtype() -> ScalarUDF {
    let answer = |args: &[ColumnarValue]| -> Result<ColumnarValue> {
        let names = ColumnarValue::values_to_arrays(args)?;
        let ids = names[0].as_string::<i32>().iter().map(|name| {
            Some(match name? {
                "bool" | "boolean" => 16,
                "bytea" => 17,
                "int8" | "bigint" => 20,
                "int2" | "smallint" => 21,
                "int4" | "integer" => 23,
                "text" => 25,
                "oid" => 26,
                "json" => 114,
                "float4" | "real" => 700,
                "float8" | "double precision" => 701,
                "varchar" | "character varying" => 1043,
                "date" => 1082,
                "time" => 1083,
                "timestamp" | "timestamp without time zone" => 1114,
                "timestamptz" | "timestamp with time zone" => 1184,
                "interval" => 1186,
                "numeric" => 1700,
                "uuid" => 2950,
                _ => return None,
            })
        });
        Ok(ColumnarValue::Array(Arc::new(ids.collect::<arrow::array::Int32Array>()) as ArrayRef))
    };
    create_udf("to_regtype", vec![DataType::Utf8], DataType::Int32, Volatility::Stable, Arc::new(answer))
}

/// `text LIKE pattern ESCAPE escape`, for any escape; the planner knows the backslash only.
fn like_escape() -> ScalarUDF {
    let answer = |args: &[ColumnarValue]| -> Result<ColumnarValue> {
        let args = ColumnarValue::values_to_arrays(args)?;
        let (texts, patterns, escapes) =
            (args[0].as_string::<i32>(), args[1].as_string::<i32>(), args[2].as_string::<i32>());
        let matches: BooleanArray = (0..texts.len())
            .map(|i| {
                let [text, pattern, escape] =
                    [texts, patterns, escapes].map(|array| array.is_valid(i).then(|| array.value(i)));
                let parts = like_parts(pattern?, escape?.chars().next());
                Some(is_like(&text?.chars().collect::<Vec<_>>(), &parts))
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(matches)))
    };
    let texts = vec![DataType::Utf8; 3];
    create_udf("like_escape", texts, DataType::Boolean, Volatility::Immutable, Arc::new(answer))
}

#[derive(Clone, Copy)]
enum Part {
    Char(char),
    AnyChar,
    AnyText,
}

fn like_parts(pattern: &str, escape: Option<char>) -> Vec<Part> {
    let mut chars = pattern.chars();
    let mut parts = Vec::new();
    while let Some(c) = chars.next() {
        parts.push(match c {
            c if Some(c) == escape => Part::Char(chars.next().unwrap_or(c)),
            '_' => Part::AnyChar,
            '%' => Part::AnyText,
            c => Part::Char(c),
        });
    }
    parts
}

/// Goes back to the last `%` only, which suffices and keeps the work within text times pattern.
fn is_like(text: &[char], parts: &[Part]) -> bool {
    let (mut at, mut part) = (0, 0);
    let mut back = None;
    while at < text.len() {
        match parts.get(part) {
            Some(Part::AnyText) => {
                back = Some((at, part));
                part += 1;
            }
            Some(Part::AnyChar) => (at, part) = (at + 1, part + 1),
            Some(Part::Char(c)) if *c == text[at] => (at, part) = (at + 1, part + 1),
            _ => {
                let Some((from, any)) = back else { return false };
                back = Some((from + 1, any));
                (at, part) = (from + 1, any + 1);
            }
        }
    }
    parts[part..].iter().all(|rest| matches!(rest, Part::AnyText))
}

/// `json_build_object(key, value, ...)`, as text.
#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonBuildObject {
    signature: Signature,
}

impl ScalarUDFImpl for JsonBuildObject {
    fn name(&self) -> &'static str {
        "json_build_object"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays: Vec<ArrayRef> =
            args.args.iter().map(|arg| arg.to_array(args.number_rows)).collect::<Result<_>>()?;
        let texts: Vec<ArrayRef> =
            arrays.iter().map(|array| cast(array, &DataType::Utf8)).collect::<std::result::Result<_, _>>()?;
        let mut out = StringBuilder::new();
        for row in 0..args.number_rows {
            let value = |column: usize| -> serde_json::Value {
                if texts[column].is_null(row) {
                    return serde_json::Value::Null;
                }
                let text = texts[column].as_string::<i32>().value(row);
                let is_plain = arrays[column].data_type().is_numeric()
                    || arrays[column].data_type() == &DataType::Boolean;
                is_plain.then(|| serde_json::from_str(text).ok()).flatten().unwrap_or_else(|| text.into())
            };
            let object: serde_json::Map<String, serde_json::Value> = (0..texts.len() / 2)
                .map(|pair| {
                    let key = texts[2 * pair].as_string::<i32>().value(row).to_owned();
                    (key, value(2 * pair + 1))
                })
                .collect();
            out.append_value(serde_json::Value::Object(object).to_string());
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_with_another_escape() {
        let like = |text: &str, pattern: &str| {
            is_like(&text.chars().collect::<Vec<_>>(), &like_parts(pattern, Some('/')))
        };
        for (text, pattern, want) in [
            ("pg_catalog", "pg/_%", true),
            ("pgxcatalog", "pg/_%", false),
            ("public", "%", true),
            ("", "%", true),
            ("", "_", false),
            ("a%b", "a/%b", true),
            ("axb", "a/%b", false),
            ("mississippi", "%iss%ip%i", true),
            ("mississippi", "%iss%ipx%", false),
            ("/", "//", true),
        ] {
            assert_eq!(like(text, pattern), want, "{text} LIKE {pattern}");
        }
    }
}

//! Statements that are no queries: settings of the connection and transactions. Anything else is refused.

use std::{sync::Arc, time::Duration};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::sql::sqlparser::ast::{
    Expr, ObjectName, Reset, Set, Statement, TransactionIsolationLevel, TransactionMode, Value, ValueWithSpan,
};
use futures::stream;
use pgwire::{
    api::{
        Type,
        results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse, Response, Tag},
    },
    error::PgWireResult,
    messages::response::TransactionStatus,
};

use super::{errors::error, session::Session};
use crate::sql::{SETTINGS, setting};

/// Settings that clients change and that make no difference here.
const ACCEPTED: [&str; 14] = [
    "application_name",
    "bytea_output",
    "client_min_messages",
    "datestyle",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "jit",
    "lock_timeout",
    "search_path",
    "standard_conforming_strings",
    "transaction_read_only",
];

/// The columns of `SHOW ALL`.
const SHOW_ALL: [&str; 3] = ["name", "setting", "description"];

/// Runs a statement that is no query.
pub(super) fn execute(
    session: &Session,
    status: TransactionStatus,
    statement: &Statement,
) -> PgWireResult<Response> {
    let done = |tag: &str| Ok(Response::Execution(Tag::new(tag)));
    match statement {
        Statement::Set(set) => {
            apply(session, set)?;
            done("SET")
        }
        Statement::Reset(reset) => {
            match &reset.reset {
                Reset::ALL => session.reset(),
                Reset::ConfigurationParameter(name) => match lower(name).as_str() {
                    "statement_timeout" => session.set_timeout(None),
                    name if setting(name).is_some() || ACCEPTED.contains(&name) => session.unset(name),
                    name => {
                        return Err(error(
                            "42704",
                            format!("unrecognized configuration parameter \"{name}\""),
                        ));
                    }
                },
            }
            done("RESET")
        }
        Statement::ShowVariable { variable } => {
            let name: Vec<_> = variable.iter().map(|word| word.value.to_ascii_lowercase()).collect();
            show(session, &name.join(" "))
        }
        Statement::StartTransaction { modes, .. } => {
            // A second BEGIN only warns in Postgres.
            if status == TransactionStatus::Idle {
                session.begin(is_repeatable(modes).unwrap_or_else(|| repeatable_by_default(session)));
            }
            Ok(Response::TransactionStart(Tag::new("BEGIN")))
        }
        Statement::Commit { .. } => {
            session.end();
            let tag = if status == TransactionStatus::Error { "ROLLBACK" } else { "COMMIT" };
            Ok(Response::TransactionEnd(Tag::new(tag)))
        }
        Statement::Rollback { savepoint: None, .. } => {
            session.end();
            Ok(Response::TransactionEnd(Tag::new("ROLLBACK")))
        }
        // Nothing is written, so there is nothing to go back to.
        Statement::Rollback { savepoint: Some(_), .. } => {
            Ok(Response::TransactionStart(Tag::new("ROLLBACK")))
        }
        Statement::Savepoint { .. } => done("SAVEPOINT"),
        Statement::ReleaseSavepoint { .. } => done("RELEASE"),
        Statement::Discard { .. } => {
            session.reset();
            done("DISCARD ALL")
        }
        Statement::Deallocate { .. } => done("DEALLOCATE"),
        Statement::UNLISTEN { .. } => done("UNLISTEN"),
        other => {
            let text = other.to_string();
            let words: Vec<_> = text.split_whitespace().take(2).collect();
            Err(error(
                "25006",
                format!(
                    "this is a read-only endpoint: `{}` is not possible; readings come in over HTTP",
                    words.join(" ")
                ),
            ))
        }
    }
}

/// The columns of the answer to a statement that is no query; `None` where there are no rows.
pub(super) fn columns(statement: &Statement) -> Option<SchemaRef> {
    match statement {
        Statement::ShowVariable { variable } => {
            let name: Vec<_> = variable.iter().map(|word| word.value.to_ascii_lowercase()).collect();
            let name = name.join("_");
            let names = if name == "all" { SHOW_ALL.to_vec() } else { vec![name.as_str()] };
            let fields = names.iter().map(|name| Field::new(*name, DataType::Utf8, false));
            Some(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
        }
        _ => None,
    }
}

fn lower(name: &ObjectName) -> String {
    name.to_string().to_ascii_lowercase()
}

fn text(value: &Expr) -> String {
    match value {
        Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => text.clone(),
        other => other.to_string().trim_matches(['\'', '"']).to_owned(),
    }
}

fn apply(session: &Session, set: &Set) -> PgWireResult<()> {
    match set {
        Set::SingleAssignment { variable, values, .. } => {
            let value = values.iter().map(text).collect::<Vec<_>>().join(", ");
            change(session, &lower(variable), &value)
        }
        Set::SetTimeZone { value, .. } => change(session, "timezone", &text(value)),
        Set::SetNames { charset_name, .. } => change(session, "client_encoding", &charset_name.value),
        Set::SetTransaction { modes, session: is_default, .. } => {
            if let Some(is_repeatable) = is_repeatable(modes) {
                if *is_default {
                    let level = if is_repeatable { "repeatable read" } else { "read committed" };
                    session.set("default_transaction_isolation", level.to_owned());
                } else {
                    session.set_isolation(is_repeatable);
                }
            }
            Ok(())
        }
        other => Err(error("0A000", format!("`{other}` is not possible here"))),
    }
}

/// A setting that a client sends when it connects; what is unknown or not possible does not matter then.
pub(super) fn set_at_start(session: &Session, name: &str, value: &str) {
    if name == "options" {
        // As libpq writes them: -c name=value.
        for assignment in value.split_whitespace().filter(|word| *word != "-c") {
            if let Some((name, value)) = assignment.trim_start_matches("-c").split_once('=') {
                let _ = change(session, &name.to_ascii_lowercase(), value);
            }
        }
    } else if name == "statement_timeout" || ACCEPTED.contains(&name) {
        let _ = change(session, name, value);
    }
}

fn change(session: &Session, name: &str, value: &str) -> PgWireResult<()> {
    match name {
        "statement_timeout" => session.set_timeout(milliseconds(value)?),
        "timezone"
            if !["utc", "etc/utc", "gmt", "default", "0"].contains(&value.to_ascii_lowercase().as_str()) =>
        {
            return Err(error(
                "22023",
                format!(
                    "times are shown in UTC; for days of {value} use time_bucket('1 day', timestamp, '{value}') or \
                     timestamp AT TIME ZONE '{value}'"
                ),
            ));
        }
        "client_encoding" if !["utf8", "utf-8", "unicode"].contains(&value.to_ascii_lowercase().as_str()) => {
            return Err(error("22023", format!("client_encoding: `{value}` is not possible; valid is UTF8")));
        }
        "timezone" | "client_encoding" => {}
        _ if ACCEPTED.contains(&name) => session.set(name, value.chars().take(256).collect()),
        _ => {
            return Err(error("42704", format!("unrecognized configuration parameter \"{name}\"")));
        }
    }
    Ok(())
}

/// A period as Postgres writes it: a number of milliseconds, or one with a unit; 0: none.
fn milliseconds(text: &str) -> PgWireResult<Option<Duration>> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ if text.eq_ignore_ascii_case("default") => return Ok(None),
        _ => {
            return Err(error(
                "22023",
                format!("invalid value for parameter \"statement_timeout\": \"{text}\""),
            ));
        }
    };
    let number: u64 = number.parse().map_err(|_| {
        error("22023", format!("invalid value for parameter \"statement_timeout\": \"{text}\""))
    })?;
    Ok((number > 0).then(|| Duration::from_millis(number.saturating_mul(factor))))
}

fn show(session: &Session, name: &str) -> PgWireResult<Response> {
    if name == "all" {
        let all = SETTINGS.iter().map(|(name, value)| {
            let value = session.setting(name).unwrap_or_else(|| (*value).to_owned());
            vec![(*name).to_owned(), value, String::new()]
        });
        return rows(&SHOW_ALL, all.collect());
    }
    let name = match name {
        "time zone" => "timezone",
        "transaction isolation level" => "transaction_isolation",
        other => other,
    };
    let value = match name {
        "statement_timeout" => {
            session.timeout().map_or("0".to_owned(), |timeout| format!("{}ms", timeout.as_millis()))
        }
        _ => session
            .setting(name)
            .or_else(|| setting(name).map(str::to_owned))
            .ok_or_else(|| error("42704", format!("unrecognized configuration parameter \"{name}\"")))?,
    };
    rows(&[name], vec![vec![value]])
}

/// Rows of texts.
fn rows(names: &[&str], rows: Vec<Vec<String>>) -> PgWireResult<Response> {
    let field = |name: &&str| FieldInfo::new((*name).to_owned(), None, None, Type::TEXT, FieldFormat::Text);
    let fields = Arc::new(names.iter().map(field).collect::<Vec<_>>());
    let mut encoder = DataRowEncoder::new(Arc::clone(&fields));
    let encoded = rows.into_iter().map(|row| {
        row.iter().try_for_each(|value| encoder.encode_field(&Some(value.as_str())))?;
        Ok(encoder.take_row())
    });
    let encoded: Vec<PgWireResult<_>> = encoded.collect();
    Ok(Response::Query(QueryResponse::new(fields, stream::iter(encoded))))
}

fn repeatable_by_default(session: &Session) -> bool {
    session.setting("default_transaction_isolation").is_some_and(|level| level != "read committed")
}

/// Whether the modes of a transaction name an isolation, and then whether it sees one state all the time.
fn is_repeatable(modes: &[TransactionMode]) -> Option<bool> {
    modes.iter().find_map(|mode| match mode {
        TransactionMode::IsolationLevel(level) => Some(matches!(
            level,
            TransactionIsolationLevel::RepeatableRead
                | TransactionIsolationLevel::Serializable
                | TransactionIsolationLevel::Snapshot
        )),
        TransactionMode::AccessMode(_) => None,
    })
}

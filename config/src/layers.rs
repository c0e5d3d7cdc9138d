//! Layering: defaults < file < environment < flags, with unknown keys refused at the layer they came from.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::{ConfigError, Settings};

/// Variables with the prefix that are not settings: the command line's own, and what container platforms inject
/// for a service called `wattlake`.
const RESERVED: &[&str] = &["WATTLAKE_TOKEN", "WATTLAKE_URL", "WATTLAKE_CONFIG", "WATTLAKE_PORT"];
const PREFIX: &str = "WATTLAKE_";

/// Whether a variable of our prefix means something else than a setting.
pub fn is_reserved_variable(name: &str) -> bool {
    RESERVED.contains(&name) || name.starts_with("WATTLAKE_PORT_") || name.starts_with("WATTLAKE_SERVICE_")
}

/// The sources of settings, lowest priority first.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// A settings file; must exist.
    pub file: Option<PathBuf>,
    /// Environment variables, name and value; others than `WATTLAKE_*` are ignored.
    pub environment: Vec<(String, String)>,
    /// `key.path=value` assignments.
    pub assignments: Vec<String>,
}

impl Layers {
    /// Reads and merges all layers and checks the result.
    ///
    /// # Errors
    /// Unreadable files, bad TOML, unknown keys (with the nearest valid one), values of a wrong type or range.
    pub fn load(&self) -> Result<Settings, ConfigError> {
        let known = known_keys();
        let mut merged = Table::new();
        if let Some(path) = &self.file {
            let table = read_file(path)?;
            refuse_unknown(&table, "", &path.display().to_string(), &known)?;
            merge(&mut merged, table);
        }
        for (name, value) in &self.environment {
            let Some(path) = name.strip_prefix(PREFIX) else { continue };
            if is_reserved_variable(name) {
                continue;
            }
            let key = path.to_lowercase().replace("__", ".");
            merge(&mut merged, assignment(&key, value, &format!("environment variable {name}"), &known)?);
        }
        for text in &self.assignments {
            let origin = format!("--set {text}");
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| ConfigError::NotAnAssignment { origin: "--set".into(), text: text.clone() })?;
            merge(&mut merged, assignment(key.trim(), value.trim(), &origin, &known)?);
        }
        let settings: Settings =
            serde_path_to_error::deserialize(Value::Table(merged)).map_err(|error| ConfigError::Invalid {
                key: error.path().to_string(),
                message: error.into_inner().message().trim().to_owned(),
            })?;
        settings.check()?;
        Ok(settings)
    }
}

fn read_file(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    text.parse::<Table>().map_err(|error| ConfigError::Syntax {
        origin: path.display().to_string(),
        message: error.to_string().trim().to_owned(),
    })
}

/// Every valid dotted key with its default value.
fn known_keys() -> Vec<(String, Value)> {
    fn collect(table: &Table, prefix: &str, out: &mut Vec<(String, Value)>) {
        for (key, value) in table {
            let path = format!("{prefix}{key}");
            out.push((path.clone(), value.clone()));
            if let Value::Table(inner) = value {
                collect(inner, &format!("{path}."), out);
            }
        }
    }
    let mut out = Vec::new();
    if let Ok(Value::Table(defaults)) = Value::try_from(Settings::default()) {
        collect(&defaults, "", &mut out);
    }
    out
}

/// Keys below these are names of the user's own, checked by their types.
fn is_free_form(path: &str) -> bool {
    ["metrics", "carbon.factors"].iter().any(|free| path == *free || path.starts_with(&format!("{free}.")))
}

fn refuse_unknown(
    table: &Table,
    prefix: &str,
    origin: &str,
    known: &[(String, Value)],
) -> Result<(), ConfigError> {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        if is_free_form(&path) {
            continue;
        }
        if !known.iter().any(|(k, _)| *k == path) {
            return Err(unknown(origin, &path, known));
        }
        if let Value::Table(inner) = value {
            refuse_unknown(inner, &format!("{path}."), origin, known)?;
        }
    }
    Ok(())
}

fn unknown(origin: &str, key: &str, known: &[(String, Value)]) -> ConfigError {
    let nearest = known
        .iter()
        .filter(|(_, value)| !value.is_table())
        .map(|(k, _)| k)
        .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
    ConfigError::UnknownKey {
        origin: origin.to_owned(),
        key: key.to_owned(),
        nearest: nearest.cloned().unwrap_or_default(),
    }
}

/// A table that sets one dotted key to a text, read as the type that the key has.
fn assignment(key: &str, text: &str, origin: &str, known: &[(String, Value)]) -> Result<Table, ConfigError> {
    let default = known.iter().find(|(k, v)| k == key && !v.is_table()).map(|(_, v)| v);
    let value = match default {
        Some(Value::String(_)) => Value::String(text.to_owned()),
        Some(_) => toml_value(text).unwrap_or_else(|| Value::String(text.to_owned())),
        // Factors are numbers, everything else that has a name of the user's own is text.
        None if key.starts_with("carbon.factors.") => {
            toml_value(text).unwrap_or_else(|| Value::String(text.to_owned()))
        }
        None if is_free_form(key) => Value::String(text.to_owned()),
        None => return Err(unknown(origin, key, known)),
    };
    let mut parts = key.rsplit('.');
    let mut table = Table::new();
    table.insert(parts.next().unwrap_or_default().to_owned(), value);
    for part in parts {
        let mut outer = Table::new();
        outer.insert(part.to_owned(), Value::Table(table));
        table = outer;
    }
    Ok(table)
}

fn toml_value(text: &str) -> Option<Value> {
    format!("v = {text}").parse::<Table>().ok()?.remove("v")
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

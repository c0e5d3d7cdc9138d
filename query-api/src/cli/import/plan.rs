//! What is to be imported: which files there are, in which formats, and what the user says of them.

use std::{path::Path, sync::Arc};

use serde::Deserialize;
use wattlake_engine::{
    BodyFormat, ERRORS_REPORTED_MAX, Error, FileFormat, FileOptions, FoundFile, Part, Profile, TableMapping,
    TimePrecision, find_files, parse_zone,
};

use super::{
    ERRORS_OF_PART, ImportArgs,
    database::{is_database, shown},
};
use crate::cli::Failure;

/// One file with its options.
pub(super) struct Plan {
    pub file: FoundFile,
    /// Not a file, but a database at this address.
    pub database: Option<String>,
    pub format: FileFormat,
    pub options: FileOptions,
    pub mapping: Option<Arc<TableMapping>>,
    pub precision: Option<TimePrecision>,
    pub site: String,
    pub is_dry_run: bool,
    pub errors_max: usize,
}

impl Plan {
    /// An error with the file's name before it.
    pub(super) fn named(&self, error: Error) -> Failure {
        named(&self.file, error)
    }

    /// The mapping of columns, unless they have been mapped already.
    pub(super) fn mapping_of(&self, part: &Part) -> Option<&Arc<TableMapping>> {
        self.mapping.as_ref().filter(|_| part.lines.is_none())
    }
}

fn named(file: &FoundFile, error: Error) -> Failure {
    let message = format!("{}: {}", file.name, error.message);
    Failure::from(Error::new(error.kind, message))
}

/// What a mapping file says.
enum Mapping {
    Columns(Arc<TableMapping>),
    Profile(Arc<Profile>),
}

pub(super) struct Planned {
    pub plans: Vec<Plan>,
    /// Files of folders and archives whose format is not known: they are left out.
    pub unknown: Vec<String>,
}

/// Finds the files and looks into each.
pub(super) fn make(args: &ImportArgs) -> Result<Planned, Failure> {
    let usage = |error: Error| Failure::usage(error.message);
    let mapping = args.map.as_deref().map(read_mapping).transpose()?;
    let precision = args.precision.as_deref().map(str::parse).transpose().map_err(usage)?;
    let zone = args.time_zone.as_deref().map(parse_zone).transpose().map_err(usage)?;
    let market_zone = args.market_zone.as_deref().map(parse_zone).transpose().map_err(usage)?;
    let dst = args.dst.parse().map_err(|error: Error| Failure::usage(format!("--dst: {}", error.message)))?;
    let format: Option<FileFormat> = args.format.as_deref().map(str::parse).transpose().map_err(usage)?;
    let (table, profile) = match mapping {
        None => (None, None),
        Some(Mapping::Columns(table)) => (Some(table), None),
        Some(Mapping::Profile(profile)) => (None, Some(profile)),
    };
    let named_site = args.site.clone().or_else(|| match (&table, &profile) {
        (Some(table), _) => table.site.clone(),
        (_, Some(profile)) => profile.site.clone(),
        _ => None,
    });
    let mut planned = Planned { plans: Vec::new(), unknown: Vec::new() };
    let (databases, files): (Vec<_>, Vec<_>) =
        args.files.iter().cloned().partition(|file| is_database(&file.to_string_lossy()));
    for url in databases {
        let url = url.to_string_lossy().into_owned();
        planned.plans.push(Plan {
            file: FoundFile::of_name(&shown(&url)),
            database: Some(url),
            format: FileFormat::Body(BodyFormat::ArrowStream),
            options: FileOptions::default(),
            mapping: None,
            precision: None,
            site: String::new(),
            is_dry_run: args.dry_run,
            errors_max: if args.rejects.is_some() { ERRORS_OF_PART } else { ERRORS_REPORTED_MAX },
        });
    }
    for file in find_files(&files)? {
        let format = match (format, &profile) {
            (Some(format), _) => format,
            (None, Some(_)) => FileFormat::Mapped,
            (None, None) => match format_of(&file, table.is_some())? {
                Some(format) => format,
                None if file.is_named => {
                    return Err(Failure::usage(format!(
                        "{}: the format is not known by its content; name it with --format ({}), or the columns with --map",
                        file.name,
                        FileFormat::names().join(", ")
                    )));
                }
                None => {
                    planned.unknown.push(file.name.clone());
                    continue;
                }
            },
        };
        let options = FileOptions {
            zone: zone.clone(),
            market_zone: market_zone.clone(),
            dst,
            entity: args.entity.clone(),
            stem: file.stem.clone(),
            profile: profile.clone(),
        };
        planned.plans.push(Plan {
            database: None,
            format,
            options,
            mapping: table.clone(),
            precision,
            site: named_site.clone().unwrap_or_else(|| file.stem.clone()),
            is_dry_run: args.dry_run,
            errors_max: if args.rejects.is_some() { ERRORS_OF_PART } else { ERRORS_REPORTED_MAX },
            file,
        });
    }
    if planned.plans.is_empty() {
        return Err(Failure::usage("none of the files is in a format that is known; name it with --format"));
    }
    Ok(planned)
}

/// By content; of tables with a mapping, and of texts that say nothing, by the file's name.
fn format_of(file: &FoundFile, is_mapped: bool) -> Result<Option<FileFormat>, Failure> {
    let head = file.head()?;
    let detected = FileFormat::detect(&head);
    let by_name = by_name(&file.name).map(FileFormat::Body);
    Ok(match detected {
        Some(FileFormat::Body(BodyFormat::Parquet)) => detected,
        _ if is_mapped => by_name.or(Some(FileFormat::Body(BodyFormat::Csv))),
        Some(_) => detected,
        None => by_name,
    })
}

fn by_name(name: &str) -> Option<BodyFormat> {
    let name = name.to_lowercase();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("csv") => Some(BodyFormat::Csv),
        Some("ndjson" | "jsonl") => Some(BodyFormat::NdJson),
        Some("lp" | "line") => Some(BodyFormat::LineProtocol),
        Some("parquet") => Some(BodyFormat::Parquet),
        _ => None,
    }
}

/// A profile where it says how times are read, else names of columns.
fn read_mapping(path: &Path) -> Result<Mapping, Failure> {
    let usage = |message: String| Failure::usage(format!("mapping {}: {message}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| usage(error.to_string()))?;
    let parse = || toml::Deserializer::parse(&text).map_err(|error| usage(error.to_string()));
    let table: toml::Table = toml::from_str(&text).map_err(|error| usage(error.to_string()))?;
    if table.contains_key("time") {
        let profile = Profile::deserialize(parse()?);
        let profile = profile.map_err(|error| usage(error.to_string().trim().to_owned()))?;
        profile.check().map_err(|error| usage(error.message))?;
        return Ok(Mapping::Profile(Arc::new(profile)));
    }
    let mapping = TableMapping::deserialize(parse()?);
    let mapping = mapping.map_err(|error| usage(error.to_string().trim().to_owned()))?;
    mapping.check().map_err(|error| usage(error.message))?;
    Ok(Mapping::Columns(Arc::new(mapping)))
}

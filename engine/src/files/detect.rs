//! Which format a file has, by its first bytes.

use std::str::FromStr;

use crate::{BodyFormat, Error, Result};

use super::profile::Profile;

/// A format that files are imported in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// One that bodies of requests have as well.
    Body(BodyFormat),
    /// NEM12 and NEM13.
    Nem,
    GreenButton,
    /// Answers of SolarEdge's API of version 1.
    SolarEdge,
    /// CSV with annotations of InfluxDB 2.
    AnnotatedCsv,
    /// CSV3 of SMA's web interface.
    Sma,
    /// CSV of NISC's SmartHub.
    Nisc,
    /// A table that one of our profiles is for.
    Profile(&'static str),
    /// A table that a mapping of the user's is for.
    Mapped,
}

/// Formats that are no profiles, by name.
const NAMED: [(&str, FileFormat); 10] = [
    ("csv", FileFormat::Body(BodyFormat::Csv)),
    ("ndjson", FileFormat::Body(BodyFormat::NdJson)),
    ("parquet", FileFormat::Body(BodyFormat::Parquet)),
    ("line-protocol", FileFormat::Body(BodyFormat::LineProtocol)),
    ("nem12", FileFormat::Nem),
    ("green-button", FileFormat::GreenButton),
    ("solaredge", FileFormat::SolarEdge),
    ("influx-csv", FileFormat::AnnotatedCsv),
    ("sma", FileFormat::Sma),
    ("nisc", FileFormat::Nisc),
];

/// Other names of the same.
const ALSO: [(&str, &str); 4] =
    [("jsonl", "ndjson"), ("lp", "line-protocol"), ("nem13", "nem12"), ("espi", "green-button")];

impl FileFormat {
    /// The names of all formats.
    pub fn names() -> Vec<&'static str> {
        NAMED.iter().map(|(name, _)| *name).chain(Profile::names()).collect()
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Profile(name) => name,
            Self::Mapped => "a mapped table",
            other => NAMED.iter().find(|(_, format)| *format == other).map_or("", |(name, _)| name),
        }
    }

    /// Finds out what a file is; `head` are its first bytes, decompressed. `None`: nothing that we know.
    pub fn detect(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"PAR1") {
            return Some(Self::Body(BodyFormat::Parquet));
        }
        let text = text_of(head);
        let text = text.trim_start();
        if text.starts_with('<') {
            let is_feed =
                text.contains("naesb.org/espi") || text.contains("IntervalBlock") || text.contains("<feed");
            return is_feed.then_some(Self::GreenButton);
        }
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(60).collect();
        let first = *lines.first()?;
        if first.starts_with("#group") || first.starts_with("#datatype") || first.starts_with("#default") {
            return Some(Self::AnnotatedCsv);
        }
        let fields: Vec<&str> = first.split(',').collect();
        let is_nem = match fields[0] {
            "100" => fields.get(1).is_some_and(|version| version.starts_with("NEM1")),
            "200" => fields.len() >= 9,
            _ => false,
        };
        if is_nem {
            return Some(Self::Nem);
        }
        if text.starts_with('{') || text.starts_with('[') {
            return Some(if super::solaredge::is_answer(text) {
                Self::SolarEdge
            } else {
                Self::Body(BodyFormat::NdJson)
            });
        }
        if lines.iter().any(|line| line.starts_with("Version CSV3")) {
            return Some(Self::Sma);
        }
        if lines.iter().any(|line| super::nisc::is_header(line)) {
            return Some(Self::Nisc);
        }
        if let Some(name) = Profile::of_header(&lines) {
            return Some(Self::Profile(name));
        }
        if is_line_protocol(&lines) {
            return Some(Self::Body(BodyFormat::LineProtocol));
        }
        let columns = |line: &str| -> Vec<String> {
            line.split([',', ';', '\t'])
                .map(|cell| cell.trim().trim_matches('"').to_ascii_lowercase())
                .collect()
        };
        let header = columns(first);
        let has = |name: &str| header.iter().any(|column| column == name);
        let is_ours = has("timestamp") && (has("entity_id") || has("entityid"));
        is_ours.then_some(Self::Body(BodyFormat::Csv))
    }
}

/// The beginning of a text of any encoding that spreadsheets write.
fn text_of(head: &[u8]) -> String {
    let utf16 = |bytes: &[u8], read: fn([u8; 2]) -> u16| {
        let (units, _) = bytes.as_chunks::<2>();
        String::from_utf16_lossy(&units.iter().map(|unit| read(*unit)).collect::<Vec<_>>())
    };
    match head {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(head).into_owned(),
    }
}

/// Whether lines are those of a dump in line protocol: `name,tag=x field=1 1700000000`.
fn is_line_protocol(lines: &[&str]) -> bool {
    let is_head = |line: &&&str| line.starts_with('#') || line.starts_with("CREATE ");
    let Some(first) = lines.iter().find(|line| !is_head(line)) else { return false };
    let mut parts = first.split(' ');
    let (name, fields) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let is_name = !name.is_empty() && name.split(',').skip(1).all(|tag| tag.contains('='));
    is_name && fields.split_once('=').is_some_and(|(field, value)| !field.is_empty() && !value.is_empty())
}

impl FromStr for FileFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = ALSO.iter().find(|(other, _)| *other == text).map_or(text, |(_, name)| name);
        let named = NAMED.iter().find(|(name, _)| *name == text).map(|(_, format)| *format);
        let profile = || Profile::names().find(|name| *name == text).map(Self::Profile);
        named.or_else(profile).ok_or_else(|| {
            Error::invalid(format!("unknown format `{text}`; valid are {}", Self::names().join(", ")))
        })
    }
}

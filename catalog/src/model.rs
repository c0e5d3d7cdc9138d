//! The vocabulary of the fleet: ids, enums, sites, meters and energy sources. Every other crate uses these words.

use std::{fmt, str::FromStr};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{Error, Result};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id; ids made later sort later.
            pub fn random() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let uuid = text.parse().map_err(|_| {
                    Error::invalid(format!(concat!($what, " `{}` is not a uuid (8-4-4-4-12 hex digits)"), text))
                })?;
                Ok(Self(uuid))
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid {
                id.0
            }
        }
    };
}

id!(/// Identifies a site.
    SiteId, "site id");
id!(/// Identifies an entity: a meter or an energy source.
    EntityId, "entity id");

macro_rules! text_enum {
    ($(#[$doc:meta])* $name:ident: $what:literal { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name { $(#[serde(rename = $text)] $variant),* }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant),*];

            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;

            fn from_str(text: &str) -> $crate::Result<Self> {
                Self::ALL.iter().copied().find(|v| v.as_str() == text).ok_or_else(|| {
                    let valid: Vec<_> = Self::ALL.iter().map(|v| v.as_str()).collect();
                    $crate::Error::invalid(format!(concat!("unknown ", $what, " `{}`; valid are {}"), text, valid.join(", ")))
                })
            }
        }
    };
}
pub(crate) use text_enum;

text_enum! {
    /// What a site is used for.
    IndustryType: "industry type" {
        Residential = "residential", Commercial = "commercial", Industrial = "industrial",
        Agricultural = "agricultural", Public = "public", Utility = "utility", Other = "other",
    }
}

text_enum! {
    /// What a meter measures: production, consumption, storage, injection into the grid.
    Category: "category" { Prod = "PROD", Cons = "CONS", Stor = "STOR", Inj = "INJ" }
}

text_enum! {
    /// The cadence that a meter's readings are expected at.
    ReadingFrequency: "reading frequency" {
        Min1 = "1min", Min5 = "5min", Min10 = "10min", Min15 = "15min", Min30 = "30min",
        Hourly = "hourly", Daily = "daily", Weekly = "weekly", Monthly = "monthly",
    }
}

impl ReadingFrequency {
    /// Seconds between two readings; a month counts as 30 days.
    pub const fn seconds(self) -> i64 {
        match self {
            Self::Min1 => 60,
            Self::Min5 => 300,
            Self::Min10 => 600,
            Self::Min15 => 900,
            Self::Min30 => 1800,
            Self::Hourly => 3600,
            Self::Daily => 86_400,
            Self::Weekly => 7 * 86_400,
            Self::Monthly => 30 * 86_400,
        }
    }
}

text_enum! {
    /// What a reading belongs to.
    EntityType: "entity type" { Meter = "meter", EnergySource = "energy_source" }
}

text_enum! {
    /// How far a reading can be trusted.
    Quality: "quality" { Good = "good", Bad = "bad", Estimated = "estimated" }
}

/// Free data about an entity; a JSON object.
pub(crate) type Metadata = Map<String, Value>;

/// A place with meters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Site {
    pub id: SiteId,
    pub name: String,
    pub location: Option<String>,
    pub industry_type: Option<IndustryType>,
    pub description: Option<String>,
    pub metadata: Metadata,
    pub active: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Site {
    /// The IANA zone in `metadata.timezone`.
    pub fn zone_name(&self) -> Option<&str> {
        self.metadata.get("timezone").and_then(Value::as_str)
    }
}

/// A measuring point; meters of a site form a tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meter {
    pub id: EntityId,
    pub site_id: SiteId,
    pub parent_meter_id: Option<EntityId>,
    pub name: String,
    pub category: Category,
    pub reading_frequency: ReadingFrequency,
    /// kW, or kWh for storage.
    pub capacity: Option<f64>,
    pub description: Option<String>,
    pub metadata: Metadata,
    pub active: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A device behind a meter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnergySource {
    pub id: EntityId,
    pub meter_id: EntityId,
    pub name: String,
    /// Free text: solar, battery, grid...
    pub source_type: String,
    pub capacity: Option<f64>,
    pub metadata: Metadata,
    pub active: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

fn active_by_default() -> bool {
    true
}

/// What a client may say of a site.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SiteDraft {
    pub id: Option<SiteId>,
    pub name: String,
    pub location: Option<String>,
    pub industry_type: Option<IndustryType>,
    pub description: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default = "active_by_default")]
    pub active: bool,
}

/// What a client may say of a meter.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeterDraft {
    pub id: Option<EntityId>,
    pub site_id: SiteId,
    pub parent_meter_id: Option<EntityId>,
    pub name: String,
    pub category: Category,
    #[serde(default = "quarter_hourly")]
    pub reading_frequency: ReadingFrequency,
    pub capacity: Option<f64>,
    pub description: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default = "active_by_default")]
    pub active: bool,
}

pub(crate) fn quarter_hourly() -> ReadingFrequency {
    ReadingFrequency::Min15
}

/// What a client may say of an energy source.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnergySourceDraft {
    pub id: Option<EntityId>,
    pub meter_id: EntityId,
    pub name: String,
    pub source_type: String,
    pub capacity: Option<f64>,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default = "active_by_default")]
    pub active: bool,
}

const NAME_CHARS_MAX: usize = 200;
const TEXT_CHARS_MAX: usize = 4000;
const METADATA_BYTES_MAX: usize = 64 << 10;

fn check_name(what: &str, name: &str) -> Result<()> {
    let chars = name.chars().count();
    if name.trim().is_empty() || chars > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "{what}: 1 to {NAME_CHARS_MAX} characters without control characters, found {chars}"
        )));
    }
    Ok(())
}

fn check_text(what: &str, text: Option<&String>) -> Result<()> {
    match text {
        Some(text) if text.contains('\0') || text.chars().count() > TEXT_CHARS_MAX => {
            Err(Error::invalid(format!("{what}: at most {TEXT_CHARS_MAX} characters without NUL characters")))
        }
        _ => Ok(()),
    }
}

fn check_capacity(capacity: Option<f64>) -> Result<()> {
    match capacity {
        Some(c) if !c.is_finite() || c < 0.0 => {
            Err(Error::invalid(format!("capacity: a number of kW or kWh, 0 or more, found {c}")))
        }
        _ => Ok(()),
    }
}

fn check_metadata(metadata: &Metadata) -> Result<()> {
    let bytes = serde_json::to_string(metadata).map_or(usize::MAX, |text| text.len());
    if bytes > METADATA_BYTES_MAX {
        return Err(Error::invalid(format!("metadata: at most {METADATA_BYTES_MAX} bytes, found {bytes}")));
    }
    match metadata.get("externalId") {
        None | Some(Value::Null) => {}
        Some(Value::String(id)) => check_name("metadata.externalId", id)?,
        Some(other) => return Err(Error::invalid(format!("metadata.externalId: a text, found {other}"))),
    }
    match metadata.get("timezone") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(zone)) if TimeZone::get(zone).is_ok() => Ok(()),
        Some(other) => Err(Error::invalid(format!(
            "metadata.timezone: {other} is not an IANA zone, for example Europe/Berlin"
        ))),
    }
}

impl SiteDraft {
    pub(crate) fn check(&self) -> Result<()> {
        check_name("site name", &self.name)?;
        check_text("location", self.location.as_ref())?;
        check_text("description", self.description.as_ref())?;
        check_metadata(&self.metadata)
    }
}

impl MeterDraft {
    pub(crate) fn check(&self) -> Result<()> {
        check_name("meter name", &self.name)?;
        check_text("description", self.description.as_ref())?;
        check_capacity(self.capacity)?;
        check_metadata(&self.metadata)
    }
}

impl EnergySourceDraft {
    pub(crate) fn check(&self) -> Result<()> {
        check_name("energy source name", &self.name)?;
        check_name("source type", &self.source_type)?;
        check_capacity(self.capacity)?;
        check_metadata(&self.metadata)
    }
}

impl From<&Site> for SiteDraft {
    fn from(site: &Site) -> Self {
        let Site { id, name, location, industry_type, description, metadata, active, .. } = site.clone();
        Self { id: Some(id), name, location, industry_type, description, metadata, active }
    }
}

impl From<&Meter> for MeterDraft {
    fn from(meter: &Meter) -> Self {
        let m = meter.clone();
        Self {
            id: Some(m.id),
            site_id: m.site_id,
            parent_meter_id: m.parent_meter_id,
            name: m.name,
            category: m.category,
            reading_frequency: m.reading_frequency,
            capacity: m.capacity,
            description: m.description,
            metadata: m.metadata,
            active: m.active,
        }
    }
}

impl From<&EnergySource> for EnergySourceDraft {
    fn from(source: &EnergySource) -> Self {
        let s = source.clone();
        Self {
            id: Some(s.id),
            meter_id: s.meter_id,
            name: s.name,
            source_type: s.source_type,
            capacity: s.capacity,
            metadata: s.metadata,
            active: s.active,
        }
    }
}

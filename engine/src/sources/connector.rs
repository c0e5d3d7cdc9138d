//! What the runner knows of a vendor: which answers there are, how to ask for a window of one, and what an answer says.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use wattlake_catalog::{EntityId, Quality};

use super::{
    budget::Limits,
    failure::CallFailure,
    http::{Answer, Call},
    mapping::intern,
};

/// Microseconds since 1970 UTC, `from <= ts < to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub from: i64,
    pub to: i64,
}

impl Window {
    pub(crate) fn len(self) -> i64 {
        self.to - self.from
    }
}

/// One kind of answer. Times are in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stream {
    pub name: &'static str,
    /// Between two readings.
    pub cadence: i64,
    /// The longest window to try, and the shortest one when that is too long.
    pub span_max: i64,
    pub span_min: i64,
    /// A reading is there so long after its interval has ended.
    pub settles: i64,
    /// So much of what is known is asked for again, where it costs no call.
    pub overlap: i64,
    /// How far back the vendor answers, if there is a limit.
    pub horizon: Option<i64>,
    /// Asked for at every poll; others only by backfill.
    pub is_polled: bool,
    /// Days without an entry are days without a value, not gaps.
    pub is_sparse: bool,
    /// An answer is about now: there is no history to ask for.
    pub is_instant: bool,
}

/// What a reading is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantity {
    Power,
    Energy,
    ConsumptionPower,
    ConsumptionEnergy,
    ImportPower,
    ImportEnergy,
    ExportPower,
    ExportEnergy,
    ChargePower,
    ChargeEnergy,
    DischargePower,
    DischargeEnergy,
    StateOfCharge,
    Voltage,
    Current,
    Frequency,
    DayEnergy,
    DayConsumptionEnergy,
    DayImportEnergy,
    DayExportEnergy,
    DayChargeEnergy,
    DayDischargeEnergy,
    /// A metric of a configuration, and what it is about.
    Named(MetricName, Option<Role>),
}

/// A name that lives as long as the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub(crate) struct MetricName(&'static str);

impl<'de> Deserialize<'de> for MetricName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(intern(&String::deserialize(deserializer)?)))
    }
}

/// Which entity a quantity is stored at, when the source names one for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    Production,
    Consumption,
    Import,
    Export,
    Storage,
}

impl Role {
    pub(crate) const ALL: [(&'static str, Self); 5] = [
        ("production", Self::Production),
        ("consumption", Self::Consumption),
        ("import", Self::Import),
        ("export", Self::Export),
        ("storage", Self::Storage),
    ];
}

impl Quantity {
    pub(crate) fn named(metric: &str, role: Option<Role>) -> Self {
        Self::Named(MetricName(intern(metric)), role)
    }

    pub(crate) fn role(self) -> Role {
        match self {
            Self::Power
            | Self::Energy
            | Self::Voltage
            | Self::Current
            | Self::Frequency
            | Self::DayEnergy => Role::Production,
            Self::ConsumptionPower | Self::ConsumptionEnergy | Self::DayConsumptionEnergy => {
                Role::Consumption
            }
            Self::ImportPower | Self::ImportEnergy | Self::DayImportEnergy => Role::Import,
            Self::ExportPower | Self::ExportEnergy | Self::DayExportEnergy => Role::Export,
            Self::ChargePower
            | Self::ChargeEnergy
            | Self::DischargePower
            | Self::DischargeEnergy
            | Self::StateOfCharge
            | Self::DayChargeEnergy
            | Self::DayDischargeEnergy => Role::Storage,
            Self::Named(_, role) => role.unwrap_or(Role::Production),
        }
    }

    /// The metric at the source itself.
    pub(crate) fn metric(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Energy => "energy",
            Self::ConsumptionPower => "consumption_power",
            Self::ConsumptionEnergy => "consumption_energy",
            Self::ImportPower => "import_power",
            Self::ImportEnergy => "import_energy",
            Self::ExportPower => "export_power",
            Self::ExportEnergy => "export_energy",
            Self::ChargePower => "charge_power",
            Self::ChargeEnergy => "charge_energy",
            Self::DischargePower => "discharge_power",
            Self::DischargeEnergy => "discharge_energy",
            Self::StateOfCharge => "soc",
            Self::Voltage => "voltage",
            Self::Current => "current",
            Self::Frequency => "frequency",
            Self::DayEnergy => "day_energy",
            Self::DayConsumptionEnergy => "day_consumption_energy",
            Self::DayImportEnergy => "day_import_energy",
            Self::DayExportEnergy => "day_export_energy",
            Self::DayChargeEnergy => "day_charge_energy",
            Self::DayDischargeEnergy => "day_discharge_energy",
            Self::Named(MetricName(metric), _) => metric,
        }
    }

    /// The metric at an entity that stands for this role alone, such as a consumption meter.
    pub(crate) fn metric_of_role(self) -> &'static str {
        match self {
            Self::ConsumptionPower => "power",
            Self::ConsumptionEnergy => "energy",
            Self::DayConsumptionEnergy => "day_energy",
            Self::Named(MetricName("consumption_power"), _) => "power",
            Self::Named(MetricName("consumption_energy"), _) => "energy",
            Self::Named(MetricName("consumption_energy_total"), _) => "energy_total",
            other => other.metric(),
        }
    }
}

/// A reading as a vendor gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Point {
    pub quantity: Quantity,
    /// The device that it is of, by the vendor's serial number; none: the whole site.
    pub device: Option<String>,
    /// Start of the interval, microseconds since 1970 UTC.
    pub ts: i64,
    pub value: f64,
    /// The unit that the answer states, as we spell it.
    pub unit: &'static str,
    pub quality: Quality,
}

/// What an answer says about a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Decoded {
    pub points: Vec<Point>,
    /// Intervals that the answer names without a value, with the device that they are of: the vendor has none.
    pub empty: Vec<(Quantity, Option<String>, i64)>,
    /// The vendor has heard of the site until then; nothing later is final.
    pub heard_until: Option<i64>,
    /// The answer is about other times than those asked for: local times were not understood.
    pub misread_times: bool,
}

/// A system that a credential sees.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundSystem {
    pub system_id: String,
    pub name: String,
    /// IANA name.
    pub timezone: Option<String>,
    /// kW.
    pub capacity: Option<f64>,
    pub status: Option<String>,
    /// The energy source that polls it already.
    pub source_id: Option<EntityId>,
    /// Where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<FoundDevice>>,
    /// Why they are not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices_error: Option<String>,
}

/// A device of a system.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FoundDevice {
    /// `inverter`, `meter` or `battery`.
    pub kind: &'static str,
    /// Virtual meters have none.
    pub serial_number: Option<String>,
    pub name: Option<String>,
    pub model: Option<String>,
    /// What a meter measures: `production`, `consumption`, `import` or `export`.
    pub measures: Option<&'static str>,
}

/// Tokens as a vendor gives them.
#[derive(Debug, Deserialize)]
pub(crate) struct Fresh {
    pub access_token: String,
    pub refresh_token: Option<String>,
    /// Seconds.
    pub expires_in: Option<i64>,
}

impl Fresh {
    /// Those of RFC 6749, section 5.1.
    pub(crate) fn of_oauth(answer: &Answer) -> Option<Self> {
        serde_json::from_slice(&answer.body).ok()
    }
}

/// A vendor's API for one source.
pub(crate) trait Connector: Send + Sync + fmt::Debug {
    /// In the order in which they matter.
    fn streams(&self) -> Vec<Stream>;

    /// What the vendor allows a credential unless the source says otherwise.
    fn limits(&self) -> Limits;

    /// A call that shows whether the connection works.
    fn probe(&self) -> Call;

    /// Asks for a window of a stream; `in_utc`: local times were misread before.
    fn call(&self, stream: &Stream, window: Window, in_utc: bool) -> Call;

    /// Adds what the vendor knows the caller by.
    fn authorise(&self, call: &mut Call, access_token: Option<&str>);

    /// Answers a challenge (`WWW-Authenticate`); false: the caller is not known by one.
    fn respond(&self, _call: &mut Call, _challenge: &str) -> bool {
        false
    }

    /// Asks for a new access token; `None`: the vendor has none, only keys.
    fn refresh(&self, refresh_token: &str) -> Option<Call>;

    /// The tokens of the answer to [`Connector::refresh`].
    fn fresh(&self, answer: &Answer) -> Option<Fresh> {
        Fresh::of_oauth(answer)
    }

    /// What somebody does whose grant is over.
    fn how_to_authorise(&self) -> &'static str {
        "authorise again and set metadata.refreshToken"
    }

    /// Calls besides that for the window itself, and the names of their answers.
    fn more(&self, _: &Stream, _: Window) -> Vec<(String, Call)> {
        Vec::new()
    }

    /// Whether an answer comes in pages.
    fn is_paged(&self, _: &Stream) -> bool {
        false
    }

    /// Asks for what comes after `page` pages, the last of which is given.
    ///
    /// # Errors
    /// As [`Connector::decode`].
    fn next_page(&self, _: &Stream, _: Window, _page: u64, _: &Value) -> Result<Option<Call>, CallFailure> {
        Ok(None)
    }

    /// The program of jq that an answer is put through before it is decoded.
    ///
    /// # Errors
    /// As [`Connector::decode`].
    fn program(&self, _: &Stream, _: &Value) -> Result<Option<&str>, CallFailure> {
        Ok(None)
    }

    /// Readings of a successful answer.
    ///
    /// # Errors
    /// [`BadPayload`](super::failure::Class::BadPayload) when it is not of the known shape.
    fn decode(&self, stream: &Stream, window: Window, body: &Value) -> Result<Decoded, CallFailure>;

    /// For who writes a configuration: what it names and the answer does not have, and numbers of the answer that it does not take.
    fn left_over(&self, _: &Stream, _: Window, _: &Value) -> (Vec<String>, Vec<String>) {
        (Vec::new(), Vec::new())
    }

    /// Asks for a page, from 1, of the systems that the credential sees; `None`: the vendor has no such list.
    fn list(&self, _page: usize) -> Option<Call> {
        None
    }

    /// The systems of a page.
    ///
    /// # Errors
    /// As [`Connector::decode`].
    fn listed(&self, _: &Value) -> Result<Vec<FoundSystem>, CallFailure> {
        Ok(Vec::new())
    }

    /// Asks for the devices of a system; `None`: the vendor has no such list.
    fn devices(&self, _system_id: &str) -> Option<Call> {
        None
    }

    /// The devices of an answer.
    ///
    /// # Errors
    /// As [`Connector::decode`].
    fn devices_listed(&self, _: &Value) -> Result<Vec<FoundDevice>, CallFailure> {
        Ok(Vec::new())
    }

    /// What an unsuccessful answer means; `stream`: none for a probe.
    fn failure(&self, stream: Option<&Stream>, answer: &Answer, now: i64) -> CallFailure;
}

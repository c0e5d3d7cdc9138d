//! Enphase's Monitoring API, version 4 (<https://developer-v4.enphase.com>).
//!
//! Times are seconds since 1970 UTC, and name the end of their interval. `granularity` is the length of the window, which begins at
//! `start_at`; the length of an interval is that of the endpoint. Intervals without a reading are left out.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use serde::Deserialize;
use serde_json::Value;
use url::Url;
use wattlake_catalog::Quality;

use super::{
    SECOND,
    budget::Limits,
    connector::{Connector, Decoded, FoundDevice, FoundSystem, Point, Quantity, Stream, Window},
    failure::{CallFailure, Class},
    http::{Answer, Call},
};

pub(crate) const BASE: &str = "https://api.enphaseenergy.com/";
const WEEK: i64 = 7 * 86_400;
/// The vendor answers nothing older than two years; a day is left for clocks and zones.
const HORIZON: i64 = 729 * 86_400;

const WEEKLY: Stream = Stream {
    name: "production",
    cadence: 900,
    span_max: WEEK,
    span_min: 900,
    // Gateways report every quarter of an hour, and the vendor lags behind.
    settles: 300,
    overlap: 86_400,
    horizon: Some(HORIZON),
    is_polled: true,
    is_sparse: false,
    is_instant: false,
};

const DAYS: Stream = Stream {
    name: "days",
    cadence: 86_400,
    span_max: 10 * 366 * 86_400,
    span_min: 86_400,
    settles: 86_400,
    overlap: 0,
    horizon: None,
    is_polled: false,
    is_sparse: true,
    is_instant: false,
};

/// Names of arrays and what they hold.
type Arrays = &'static [(&'static str, Quantity)];

/// Totals of days: the stream, the last part of its path, and its arrays.
const LIFETIMES: [(&str, &str, Arrays); 5] = [
    ("days", "energy_lifetime", &[("production", Quantity::DayEnergy)]),
    ("days_consumption", "consumption_lifetime", &[("consumption", Quantity::DayConsumptionEnergy)]),
    ("days_import", "energy_import_lifetime", &[("import", Quantity::DayImportEnergy)]),
    ("days_export", "energy_export_lifetime", &[("export", Quantity::DayExportEnergy)]),
    (
        "days_battery",
        "battery_lifetime",
        &[("charge", Quantity::DayChargeEnergy), ("discharge", Quantity::DayDischargeEnergy)],
    ),
];

fn lifetime(stream: &Stream) -> Option<(&'static str, Arrays)> {
    LIFETIMES.iter().find(|(name, ..)| *name == stream.name).map(|(_, path, arrays)| (*path, *arrays))
}

const STREAMS: [Stream; 11] = [
    WEEKLY,
    // Inverters are silent at night.
    Stream { name: "micros", cadence: 300, is_sparse: true, ..WEEKLY },
    Stream { name: "consumption", ..WEEKLY },
    Stream { name: "battery", ..WEEKLY },
    Stream { name: "import", span_max: 86_400, ..WEEKLY },
    Stream { name: "export", span_max: 86_400, ..WEEKLY },
    DAYS,
    Stream { name: "days_consumption", ..DAYS },
    Stream { name: "days_import", ..DAYS },
    Stream { name: "days_export", ..DAYS },
    Stream { name: "days_battery", ..DAYS },
];

#[derive(Clone, Debug)]
pub(crate) struct Enphase {
    pub base: Url,
    pub is_local: bool,
    pub system: String,
    pub zone: TimeZone,
    pub key: String,
    pub client_id: String,
    pub client_secret: String,
    /// Names of streams.
    pub streams: Vec<String>,
}

/// The streams that a source may ask for, and those that it does when it says nothing.
pub(crate) fn stream_names() -> (Vec<&'static str>, Vec<&'static str>) {
    (STREAMS.iter().map(|stream| stream.name).collect(), vec!["production", "consumption", "days"])
}

#[derive(Deserialize)]
struct Meta {
    last_energy_at: Option<i64>,
}

impl Enphase {
    fn url(&self, path: &str) -> Url {
        // A path of our own and an id that was checked: it can be joined.
        self.base.join(&format!("api/v4/systems/{}{path}", self.system)).unwrap_or_else(|_| self.base.clone())
    }

    fn date(&self, micros: i64) -> Date {
        Timestamp::from_microsecond(micros).unwrap_or_default().to_zoned(self.zone.clone()).date()
    }
}

impl Connector for Enphase {
    fn streams(&self) -> Vec<Stream> {
        STREAMS.into_iter().filter(|stream| self.streams.iter().any(|name| name == stream.name)).collect()
    }

    /// Those of the plan that costs nothing.
    fn limits(&self) -> Limits {
        Limits { per_minute: 10, per_month: 1000, reserve: 0.2, reset_day: 1 }
    }

    fn probe(&self) -> Call {
        Call::get(self.url(""), self.is_local)
    }

    fn call(&self, stream: &Stream, window: Window, _: bool) -> Call {
        if let Some((path, _)) = lifetime(stream) {
            let mut url = self.url(&format!("/{path}"));
            url.query_pairs_mut()
                .append_pair("start_date", &self.date(window.from).to_string())
                .append_pair("end_date", &self.date(window.to - SECOND).to_string());
            return Call::get(url, self.is_local);
        }
        let path = match stream.name {
            "micros" => "/telemetry/production_micro",
            "consumption" => "/telemetry/consumption_meter",
            "battery" => "/telemetry/battery",
            "import" => "/energy_import_telemetry",
            "export" => "/energy_export_telemetry",
            _ => "/telemetry/production_meter",
        };
        let mut url = self.url(path);
        let granularity = match window.len() / SECOND {
            ..=900 => "15mins",
            901..=86_400 => "day",
            _ => "week",
        };
        url.query_pairs_mut()
            .append_pair("start_at", &(window.from / SECOND).to_string())
            .append_pair("granularity", granularity);
        Call::get(url, self.is_local)
    }

    fn authorise(&self, call: &mut Call, access_token: Option<&str>) {
        call.url.query_pairs_mut().append_pair("key", &self.key);
        if let Some(token) = access_token {
            call.headers.push(("Authorization", format!("Bearer {token}")));
        }
    }

    fn refresh(&self, refresh_token: &str) -> Option<Call> {
        let mut url = self.base.join("oauth/token").ok()?;
        url.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", refresh_token);
        let mut call = Call::get(url, self.is_local);
        call.method = reqwest::Method::POST;
        let client = BASE64.encode(format!("{}:{}", self.client_id, self.client_secret));
        call.headers.push(("Authorization", format!("Basic {client}")));
        Some(call)
    }

    fn decode(&self, stream: &Stream, window: Window, body: &Value) -> Result<Decoded, CallFailure> {
        let bad = |what: &str| {
            CallFailure::bad_payload(format!("Enphase's answer {what}"), body.to_string().as_bytes())
        };
        if let Some((_, arrays)) = lifetime(stream) {
            return self.days(arrays, window, body);
        }
        let mut decoded = Decoded::default();
        if let Some(meta) = body.get("meta").filter(|meta| !meta.is_null()) {
            let meta = Meta::deserialize(meta).map_err(|_| bad("has a `meta` of another shape"))?;
            decoded.heard_until = meta.last_energy_at.and_then(|at| at.checked_mul(SECOND));
        }
        let devices = body.get("total_devices").and_then(Value::as_i64).unwrap_or(0);
        let intervals =
            body.get("intervals").and_then(Value::as_array).ok_or_else(|| bad("has no `intervals`"))?;
        // Imports and exports come as a list of lists.
        let rows = intervals
            .iter()
            .flat_map(|row| row.as_array().map_or_else(|| std::slice::from_ref(row), Vec::as_slice));
        for row in rows {
            let end = row
                .get("end_at")
                .and_then(Value::as_i64)
                .ok_or_else(|| bad("has an interval without `end_at`"))?;
            let ts = end.checked_mul(SECOND).map(|end| end - stream.cadence * SECOND);
            let ts = ts.filter(|ts| (window.from..window.to).contains(ts));
            let Some(ts) = ts else { continue };
            let mut take = |quantity: Quantity, place: &str, unit: &'static str| -> Result<(), CallFailure> {
                let value = match row.pointer(place) {
                    None => return Ok(()),
                    Some(Value::Null) => {
                        decoded.empty.push((quantity, None, ts));
                        return Ok(());
                    }
                    Some(value) => {
                        value.as_f64().ok_or_else(|| bad(&format!("has a `{place}` that is no number")))?
                    }
                };
                let reporting = match place.rsplit_once('/') {
                    Some((parent, _)) => row.pointer(&format!("{parent}/devices_reporting")),
                    None => None,
                };
                let is_partial =
                    reporting.and_then(Value::as_i64).is_some_and(|reporting| reporting < devices);
                // Batteries count their devices by what they do.
                let quality = match is_partial && stream.name != "battery" {
                    true => Quality::Estimated,
                    false => Quality::Good,
                };
                decoded.points.push(Point { quantity, device: None, ts, value, unit, quality });
                Ok(())
            };
            match stream.name {
                "micros" => {
                    take(Quantity::Power, "/powr", "W")?;
                    take(Quantity::Energy, "/enwh", "Wh")?;
                }
                "consumption" => take(Quantity::ConsumptionEnergy, "/enwh", "Wh")?,
                "battery" => {
                    take(Quantity::ChargeEnergy, "/charge/enwh", "Wh")?;
                    take(Quantity::DischargeEnergy, "/discharge/enwh", "Wh")?;
                    take(Quantity::StateOfCharge, "/soc/percent", "%")?;
                }
                "import" => take(Quantity::ImportEnergy, "/wh_imported", "Wh")?,
                "export" => take(Quantity::ExportEnergy, "/wh_exported", "Wh")?,
                _ => take(Quantity::Energy, "/wh_del", "Wh")?,
            }
        }
        Ok(decoded)
    }

    fn list(&self, page: usize) -> Option<Call> {
        let mut url = self.base.join("api/v4/systems").ok()?;
        url.query_pairs_mut().append_pair("page", &page.to_string()).append_pair("size", "100");
        Some(Call::get(url, self.is_local))
    }

    fn listed(&self, body: &Value) -> Result<Vec<FoundSystem>, CallFailure> {
        let systems = body.get("systems").and_then(Value::as_array).ok_or_else(|| {
            CallFailure::bad_payload("the answer has no list of systems", body.to_string().as_bytes())
        })?;
        let found = |system: &Value| {
            let text = |name: &str| system.get(name).and_then(Value::as_str).map(str::to_owned);
            let id = system.get("system_id").filter(|id| id.is_u64() || id.is_string())?;
            Some(FoundSystem {
                system_id: id.as_str().map_or_else(|| id.to_string(), str::to_owned),
                name: text("name")?,
                timezone: text("timezone"),
                // Minus one says that it is not told.
                capacity: system
                    .get("system_size")
                    .and_then(Value::as_f64)
                    .filter(|watts| *watts > 0.0)
                    .map(|watts| watts / 1000.0),
                status: text("status"),
                source_id: None,
                devices: None,
                devices_error: None,
            })
        };
        Ok(systems.iter().filter_map(found).collect())
    }

    fn devices(&self, system_id: &str) -> Option<Call> {
        let url = self.base.join(&format!("api/v4/systems/{system_id}/devices")).ok()?;
        Some(Call::get(url, self.is_local))
    }

    fn devices_listed(&self, body: &Value) -> Result<Vec<FoundDevice>, CallFailure> {
        const KINDS: [(&str, &str); 4] =
            [("micros", "inverter"), ("meters", "meter"), ("encharges", "battery"), ("acbs", "battery")];
        let devices = body.get("devices").and_then(Value::as_object).ok_or_else(|| {
            CallFailure::bad_payload("the answer has no `devices`", body.to_string().as_bytes())
        })?;
        let all = KINDS.into_iter().flat_map(|(name, kind)| {
            let of_kind = devices.get(name).and_then(Value::as_array).into_iter().flatten();
            of_kind.map(move |device| (kind, device))
        });
        let found = |(kind, device): (&'static str, &Value)| {
            let text = |name: &str| device.get(name).and_then(Value::as_str).map(str::to_owned);
            // A net meter measures consumption less production: what that is of depends on the wiring.
            let measures = match (kind, text("name").as_deref(), text("config_type").as_deref()) {
                ("meter", Some("production"), _) => Some("production"),
                ("meter", Some("consumption"), Some("Total")) => Some("consumption"),
                _ => None,
            };
            let model = text("model").or_else(|| text("part_number"));
            FoundDevice { kind, serial_number: text("serial_number"), name: text("name"), model, measures }
        };
        Ok(all.map(found).collect())
    }

    fn failure(&self, stream: Option<&Stream>, answer: &Answer, now: i64) -> CallFailure {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let details = ["details", "message", "error_description", "error", "reason"]
            .into_iter()
            .find_map(|name| body.get(name).and_then(Value::as_str));
        let mut words = format!("Enphase answered {}", answer.status);
        if let Some(details) = details {
            words = format!("{words}: {}", details.chars().take(250).collect::<String>());
        }
        let class = match answer.status {
            401 => Class::AuthExpired,
            403 | 404 if stream.is_some() => Class::Forbidden,
            403 | 404 => Class::Refused,
            422 => match details {
                Some(details) if details.contains("future") => Class::NoDataYet,
                Some(details) if bounds(details).is_some() => Class::NoDataYet,
                _ => Class::WindowTooLarge,
            },
            429 => match (answer.retry_after(now), body.get("period").and_then(Value::as_str)) {
                (Some(until), _) => Class::Throttled { until },
                (None, Some("minute")) => {
                    let end = body.get("period_end").and_then(Value::as_i64);
                    let end =
                        end.map_or(now + 60 * SECOND, |end| end.saturating_add(1).saturating_mul(SECOND));
                    Class::Throttled { until: end.clamp(now + SECOND, now + 3600 * SECOND) }
                }
                (None, _) => Class::QuotaExhausted,
            },
            _ => return answer.usual_failure(now).unwrap_or_else(|| CallFailure::new(Class::Refused, words)),
        };
        CallFailure::new(class, words)
    }
}

impl Enphase {
    /// Arrays of Wh by local day. Zeros at the end have not been reported yet.
    fn days(
        &self,
        arrays: &[(&str, Quantity)],
        window: Window,
        body: &Value,
    ) -> Result<Decoded, CallFailure> {
        let bad = |what: &str| {
            CallFailure::bad_payload(format!("Enphase's answer {what}"), body.to_string().as_bytes())
        };
        let first = body.get("start_date").and_then(Value::as_str).and_then(|date| date.parse::<Date>().ok());
        let first = first.ok_or_else(|| bad("has no `start_date`"))?;
        let mut decoded = Decoded::default();
        for (name, quantity) in arrays {
            let days =
                body.get(name).and_then(Value::as_array).ok_or_else(|| bad(&format!("has no `{name}`")))?;
            let days: Vec<f64> = days
                .iter()
                .map(|day| day.as_f64().ok_or_else(|| bad("has a day that is no number")))
                .collect::<Result<_, _>>()?;
            let reported = days.iter().rposition(|day| *day != 0.0).map_or(0, |last| last + 1);
            for (n, value) in days.into_iter().take(reported).enumerate() {
                let start = first
                    .checked_add((n as i64).days())
                    .and_then(|day| day.to_zoned(self.zone.clone()))
                    .map_err(|_| bad("has days out of time"))?;
                let ts = start.timestamp().as_microsecond();
                if (window.from..window.to).contains(&ts) {
                    decoded.points.push(Point {
                        quantity: *quantity,
                        device: None,
                        ts,
                        value,
                        unit: "Wh",
                        quality: Quality::Good,
                    });
                }
            }
        }
        Ok(decoded)
    }
}

/// The times between which the vendor has data, as an error text tells them (`:first_interval=>N, :last_interval=>N`), seconds.
fn bounds(details: &str) -> Option<(i64, i64)> {
    let number = |name: &str| -> Option<i64> {
        let (_, rest) = details.split_once(&format!(":{name}=>"))?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    Some((number("first_interval")?, number("last_interval")?))
}

#[cfg(test)]
mod tests;

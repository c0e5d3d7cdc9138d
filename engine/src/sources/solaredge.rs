//! SolarEdge's Monitoring API, version 2 (<https://developers.solaredge.com>), by fleet key or by a site owner's grant.
//!
//! Every time in an answer carries the site's offset and is the start of its interval; the interval that is still open is `null`.
//! Windows are asked for in the site's local time, as documented; where the answer is about another time they are asked for in UTC
//! from then on. `to` is inclusive.

use jiff::{Timestamp, tz::TimeZone};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;
use wattlake_catalog::Quality;

use super::{
    SECOND,
    budget::Limits,
    connector::{Connector, Decoded, FoundDevice, FoundSystem, Point, Quantity, Stream, Window},
    failure::{CallFailure, Class},
    http::{Answer, Body, Call},
};

pub(crate) const BASE: &str = "https://monitoringapi.solaredge.com/v2/";

const QUARTERS: Stream = Stream {
    name: "energy",
    cadence: 900,
    // Documented are 12 hours; 24 have been seen to work, at half the calls.
    span_max: 86_400,
    span_min: 3600,
    settles: 90,
    overlap: 6 * 3600,
    horizon: None,
    is_polled: true,
    is_sparse: false,
    is_instant: false,
};

/// All answers that are read, the default ones first.
const STREAMS: [Stream; 6] = [
    QUARTERS,
    Stream { name: "power", ..QUARTERS },
    Stream { name: "meters", ..QUARTERS },
    Stream { name: "storage", ..QUARTERS },
    Stream { name: "inverters", ..QUARTERS },
    Stream {
        name: "days",
        cadence: 86_400,
        span_max: 28 * 86_400,
        span_min: 86_400,
        settles: 86_400,
        overlap: 0,
        horizon: None,
        is_polled: false,
        is_sparse: true,
        is_instant: false,
    },
];

/// How the site is known to the vendor.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// The key of a fleet's application.
    Key(String),
    /// OAuth of one site.
    Grant { client_id: String, client_secret: String },
}

#[derive(Clone, Debug)]
pub(crate) struct SolarEdge {
    pub base: Url,
    pub is_local: bool,
    pub site: String,
    pub zone: TimeZone,
    pub access: Access,
    /// Names of streams.
    pub streams: Vec<String>,
}

/// The streams that a source may ask for, and those that it does when it says nothing.
pub(crate) fn stream_names() -> (Vec<&'static str>, Vec<&'static str>) {
    (STREAMS.iter().map(|stream| stream.name).collect(), vec!["energy", "power", "days"])
}

#[derive(Deserialize)]
struct Period {
    from: Timestamp,
}

#[derive(Deserialize)]
struct Values {
    unit: String,
    values: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    timestamp: Timestamp,
    /// Null says that there is none; without the field the answer says nothing.
    #[serde(deserialize_with = "Option::deserialize")]
    value: Option<f64>,
}

impl SolarEdge {
    fn url(&self, path: &str) -> Url {
        // A path of our own and an id that was checked: it can be joined.
        self.base.join(&format!("sites/{}/{path}", self.site)).unwrap_or_else(|_| self.base.clone())
    }

    /// A time of a window as the vendor expects it: without an offset where the zone says without doubt which instant is meant.
    fn time(&self, micros: i64, in_utc: bool) -> String {
        let at = Timestamp::from_microsecond(micros).unwrap_or_default();
        if in_utc {
            return at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        }
        let zoned = at.to_zoned(self.zone.clone());
        match self.zone.to_ambiguous_zoned(zoned.datetime()).is_ambiguous() {
            true => zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
            false => zoned.strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        }
    }
}

impl Connector for SolarEdge {
    fn streams(&self) -> Vec<Stream> {
        STREAMS.into_iter().filter(|stream| self.streams.iter().any(|name| name == stream.name)).collect()
    }

    /// Those of the free plan, by account.
    fn limits(&self) -> Limits {
        Limits { per_minute: 10, per_month: 2000, reserve: 0.2, reset_day: 1 }
    }

    fn probe(&self) -> Call {
        let url = self.url("").as_str().trim_end_matches('/').to_owned();
        Call::get(url.parse().unwrap_or_else(|_| self.base.clone()), self.is_local)
    }

    fn call(&self, stream: &Stream, window: Window, in_utc: bool) -> Call {
        let (path, resolution) = match stream.name {
            "power" => ("power", "QUARTER_HOUR"),
            "meters" => ("meters/telemetry", "QUARTER_HOUR"),
            "storage" => ("storage/telemetry", "QUARTER_HOUR"),
            "inverters" => ("inverters/telemetry", "QUARTER_HOUR"),
            "days" => ("energy", "DAY"),
            _ => ("energy", "QUARTER_HOUR"),
        };
        let mut url = self.url(path);
        let mut query = url.query_pairs_mut();
        query.append_pair("from", &self.time(window.from, in_utc));
        // An interval that begins at `to` is in the answer.
        query.append_pair("to", &self.time(window.to - SECOND, in_utc));
        query.append_pair("resolution", resolution);
        match stream.name {
            "power" => drop(query.append_pair("unit", "W")),
            "energy" | "days" => drop(query.append_pair("unit", "WH")),
            _ => {}
        }
        drop(query);
        Call::get(url, self.is_local)
    }

    fn authorise(&self, call: &mut Call, access_token: Option<&str>) {
        match (&self.access, access_token) {
            (Access::Key(key), _) => call.headers.push(("X-API-Key", key.clone())),
            (Access::Grant { .. }, Some(token)) => {
                call.headers.push(("Authorization", format!("Bearer {token}")));
            }
            (Access::Grant { .. }, None) => {}
        }
    }

    fn refresh(&self, refresh_token: &str) -> Option<Call> {
        let Access::Grant { client_id, client_secret } = &self.access else { return None };
        let mut call = Call::get(self.base.join("oauth2/token").ok()?, self.is_local);
        call.method = reqwest::Method::POST;
        call.body = Body::Json(json!({ "grant_type": "refresh_token", "refresh_token": refresh_token,
            "client_id": client_id, "client_secret": client_secret }));
        Some(call)
    }

    fn decode(&self, stream: &Stream, window: Window, body: &Value) -> Result<Decoded, CallFailure> {
        let mut decoded = Decoded::default();
        if let Some(period) = body.get("period") {
            let period: Period = read(period, "period")?;
            // A window of days may begin at the site's midnight before.
            let shift = (period.from.as_microsecond() - window.from).abs();
            decoded.misread_times = stream.name != "days" && shift >= 900 * SECOND;
        }
        let mut take = |quantity: Quantity, device: Option<&str>, answer: &Value, ends: bool| {
            let values: Values = read(answer, quantity.metric())?;
            let unit = unit(&values.unit)?;
            for sample in values.values {
                let mut ts = sample.timestamp.as_microsecond();
                if ends {
                    ts -= stream.cadence * SECOND;
                }
                if !(window.from..window.to).contains(&ts) {
                    continue;
                }
                match sample.value {
                    Some(value) => decoded.points.push(Point {
                        quantity,
                        device: device.map(str::to_owned),
                        ts,
                        value,
                        unit,
                        quality: Quality::Good,
                    }),
                    None => decoded.empty.push((quantity, device.map(str::to_owned), ts)),
                }
            }
            Ok::<_, CallFailure>(())
        };
        match stream.name {
            "energy" => take(Quantity::Energy, None, body, false)?,
            "power" => take(Quantity::Power, None, body, false)?,
            "days" => take(Quantity::DayEnergy, None, body, false)?,
            "inverters" => {
                for (serial, metrics) in members(body, "inverters")? {
                    for (name, answer) in entries(metrics) {
                        let (quantity, ends) = match name {
                            "power" => (Quantity::Power, false),
                            "energy" => (Quantity::Energy, false),
                            "current" => (Quantity::Current, false),
                            // These two are known to carry the end of their interval.
                            "voltage" => (Quantity::Voltage, true),
                            "frequency" => (Quantity::Frequency, true),
                            _ => continue,
                        };
                        take(quantity, Some(serial), answer, ends)?;
                    }
                }
            }
            "meters" => {
                for (_, metrics) in members(body, "meters")? {
                    for (name, answer) in entries(metrics) {
                        let quantity = match name {
                            "consumptionEnergy" => Quantity::ConsumptionEnergy,
                            "consumptionPower" => Quantity::ConsumptionPower,
                            "importEnergy" => Quantity::ImportEnergy,
                            "importPower" => Quantity::ImportPower,
                            "exportEnergy" => Quantity::ExportEnergy,
                            "exportPower" => Quantity::ExportPower,
                            // Production is that of the site's own answers.
                            _ => continue,
                        };
                        take(quantity, None, answer, false)?;
                    }
                }
            }
            _ => {
                for (_, metrics) in members(body, "storage")? {
                    for (name, answer) in entries(metrics) {
                        let quantity = match name {
                            "chargeEnergy" => Quantity::ChargeEnergy,
                            "chargePower" => Quantity::ChargePower,
                            "dischargeEnergy" => Quantity::DischargeEnergy,
                            "dischargePower" => Quantity::DischargePower,
                            "stateOfEnergy" => Quantity::StateOfCharge,
                            _ => continue,
                        };
                        take(quantity, None, answer, false)?;
                    }
                }
            }
        }
        decoded.points = combined(decoded.points);
        Ok(decoded)
    }

    fn list(&self, page: usize) -> Option<Call> {
        // Owners' grants are of one site.
        let Access::Key(_) = self.access else { return None };
        let mut url = self.base.join("sites").ok()?;
        url.query_pairs_mut().append_pair("page", &page.to_string()).append_pair("sites-in-page", "1000");
        Some(Call::get(url, self.is_local))
    }

    fn listed(&self, body: &Value) -> Result<Vec<FoundSystem>, CallFailure> {
        // An earlier version answered a bare array.
        let sites = body.pointer("/sites/site").unwrap_or(body).as_array();
        let sites = sites.ok_or_else(|| {
            CallFailure::bad_payload("the answer has no list of sites", body.to_string().as_bytes())
        })?;
        let found = |site: &Value| {
            let text = |place: &str| site.pointer(place).and_then(Value::as_str).map(str::to_owned);
            let id = site.get("siteId").filter(|id| id.is_u64() || id.is_string())?;
            Some(FoundSystem {
                system_id: id.as_str().map_or_else(|| id.to_string(), str::to_owned),
                name: text("/name")?,
                timezone: text("/location/timezone"),
                capacity: site.get("peakPower").and_then(Value::as_f64),
                status: text("/activationStatus"),
                source_id: None,
                devices: None,
                devices_error: None,
            })
        };
        Ok(sites.iter().filter_map(found).collect())
    }

    fn devices(&self, system_id: &str) -> Option<Call> {
        let mut url = self.base.join(&format!("sites/{system_id}/devices")).ok()?;
        let types = ["INVERTER", "METER", "BATTERY"].map(|name| ("types", name));
        url.query_pairs_mut().extend_pairs(types);
        Some(Call::get(url, self.is_local))
    }

    fn devices_listed(&self, body: &Value) -> Result<Vec<FoundDevice>, CallFailure> {
        let devices = body.as_array().ok_or_else(|| {
            CallFailure::bad_payload("the answer is no list of devices", body.to_string().as_bytes())
        })?;
        let found = |device: &Value| {
            let text = |name: &str| device.get(name).and_then(Value::as_str).map(str::to_owned);
            let kind = match device.get("type").and_then(Value::as_str)? {
                "INVERTER" => "inverter",
                "METER" => "meter",
                "BATTERY" => "battery",
                _ => return None,
            };
            let measures = match device.get("meterType").and_then(Value::as_str) {
                Some("Production") => Some("production"),
                Some("Consumption") => Some("consumption"),
                Some("Purchased") => Some("import"),
                Some("FeedIn") => Some("export"),
                _ => None,
            };
            let model = text("model").or_else(|| text("partNumber"));
            Some(FoundDevice {
                kind,
                serial_number: text("serialNumber"),
                name: text("name"),
                model,
                measures,
            })
        };
        Ok(devices.iter().filter_map(found).collect())
    }

    /// Errors are `application/problem+json` (RFC 9457).
    fn failure(&self, stream: Option<&Stream>, answer: &Answer, now: i64) -> CallFailure {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let trace = text("traceId").or_else(|| body.pointer("/properties/traceId").and_then(Value::as_str));
        let mut words = format!("SolarEdge answered {}", answer.status);
        if let Some(detail) = text("detail").or_else(|| text("error_description")).or_else(|| text("error")) {
            words = format!("{words}: {}", detail.chars().take(200).collect::<String>());
        }
        if let Some(trace) = trace {
            words = format!("{words} (trace {})", trace.chars().take(64).collect::<String>());
        }
        let is_grant = matches!(self.access, Access::Grant { .. });
        let class = match answer.status {
            400 if stream.is_some() => Class::WindowTooLarge,
            400 => Class::Refused,
            401 if is_grant => Class::AuthExpired,
            401 => Class::AuthDead,
            403 | 404 if stream.is_some() => Class::Forbidden,
            403 => Class::AuthDead,
            410 => Class::Gone,
            429 => match answer.retry_after(now) {
                Some(until) => Class::Throttled { until },
                // The minute is used up when none are left in it; else it is the month.
                None if remaining(answer) == Some(0) => Class::Throttled { until: now + 60 * SECOND },
                None => Class::QuotaExhausted,
            },
            _ => return answer.usual_failure(now).unwrap_or_else(|| CallFailure::new(Class::Refused, words)),
        };
        CallFailure::new(class, words)
    }
}

fn remaining(answer: &Answer) -> Option<i64> {
    answer.headers.get("x-ratelimit-remaining-minute")?.to_str().ok()?.trim().parse().ok()
}

fn read<'a, T: Deserialize<'a>>(value: &'a Value, what: &str) -> Result<T, CallFailure> {
    T::deserialize(value).map_err(|error| {
        CallFailure::bad_payload(
            format!("{what} is not of the known shape ({error})"),
            value.to_string().as_bytes(),
        )
    })
}

/// The devices of an answer by their serial numbers.
fn members<'a>(body: &'a Value, name: &str) -> Result<Vec<(&'a str, &'a Value)>, CallFailure> {
    match body.get(name) {
        Some(Value::Object(_)) => Ok(entries(&body[name]).collect()),
        _ => {
            Err(CallFailure::bad_payload(format!("the answer has no `{name}`"), body.to_string().as_bytes()))
        }
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

/// The unit of an answer as we spell it.
fn unit(stated: &str) -> Result<&'static str, CallFailure> {
    const UNITS: [(&str, &str); 11] = [
        ("W", "W"),
        ("KW", "kW"),
        ("MW", "MW"),
        ("WH", "Wh"),
        ("KWH", "kWh"),
        ("MWH", "MWh"),
        ("GWH", "GWh"),
        ("PERCENTAGE", "%"),
        ("VOLT", "V"),
        ("AMPERE", "A"),
        ("HERTZ", "Hz"),
    ];
    let found = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(stated));
    found.map(|(_, unit)| *unit).ok_or_else(|| {
        let stated: String = stated.chars().take(20).collect();
        CallFailure::new(
            Class::BadPayload,
            format!("SolarEdge states the unit `{stated}`, which is not known"),
        )
    })
}

/// Meters and batteries of one site are told together: sums, of states of charge the mean.
fn combined(points: Vec<Point>) -> Vec<Point> {
    let mut found: std::collections::BTreeMap<(Quantity, Option<String>, i64), (Point, f64)> =
        Default::default();
    for point in points {
        let key = (point.quantity, point.device.clone(), point.ts);
        match found.get_mut(&key) {
            None => drop(found.insert(key, (point, 1.0))),
            Some((sum, count)) => {
                sum.value += point.value;
                *count += 1.0;
            }
        }
    }
    let mean = |(mut point, count): (Point, f64)| {
        if point.quantity == Quantity::StateOfCharge {
            point.value /= count;
        }
        point
    };
    found.into_values().map(mean).collect()
}

#[cfg(test)]
mod tests;

//! SolarEdge's Monitoring API, version 2.

use axum::response::Response;
use jiff::{Timestamp, civil::DateTime};
use serde_json::{Value, json};

use super::{
    Refusal, Request, SECOND, Simulator, System, Vendor,
    chaos::{self, Wrong},
    plant::{Measure, Plant, QUARTER},
    reply, with_header,
};

/// The documented limit of a window of quarters of an hour.
const SPAN_MAX: i64 = 12 * 3600 * SECOND;
const DAYS_MAX: i64 = 31 * 86_400 * SECOND;
/// Seconds that an access token lives.
const TOKEN_LIVES: i64 = 7200;

fn problem(status: u16, detail: &str) -> Response {
    reply(
        status,
        &json!({ "type": "about:blank", "title": "Problem", "status": status, "detail": detail, "traceId": "5e1f" }),
    )
}

/// `POST /v2/oauth2/token`.
pub(super) fn token(simulator: &Simulator, request: &Request) -> Response {
    let text = |name: &str| request.body.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut seen = simulator.0.seen.lock();
    match seen.tokens.refresh(text("refresh_token"), TOKEN_LIVES, request.now) {
        Some((access, refresh)) if text("grant_type") == "refresh_token" => reply(
            200,
            &json!({ "access_token": access, "token_type": "Bearer", "expires_in": TOKEN_LIVES, "refresh_token": refresh }),
        ),
        _ => reply(400, &json!({ "error": "invalid_grant" })),
    }
}

/// Whether the caller may see a system; `Err`: what it is told instead.
fn admit<'a>(
    simulator: &'a Simulator,
    request: &Request,
    id: &str,
) -> Result<(&'a System, &'a Plant, usize), Box<Response>> {
    let unauthorized = || Box::new(problem(401, "Invalid API key"));
    let Some((system, plant)) =
        simulator.0.systems.get(id).filter(|(system, _)| system.vendor == Vendor::SolarEdge)
    else {
        return Err(Box::new(problem(404, "Unknown endpoint")));
    };
    let credential = match (request.header("x-api-key"), request.bearer()) {
        (Some(key), _) if system.key.as_deref() == Some(key) => key,
        (None, Some(token)) if simulator.0.seen.lock().tokens.is_valid(token, id, request.now) => {
            &system.client_id
        }
        _ => return Err(unauthorized()),
    };
    let left = simulator.count(Vendor::SolarEdge, credential, request.now).map_err(|refusal| {
        Box::new(match refusal {
            Refusal::Minute(until) => {
                let seconds = (until - request.now + SECOND - 1) / SECOND;
                let response =
                    with_header(problem(429, "API rate limit exceeded"), "retry-after", &seconds.to_string());
                with_header(response, "x-ratelimit-remaining-minute", "0")
            }
            Refusal::Month => {
                with_header(problem(429, "Quota exceeded"), "x-ratelimit-remaining-minute", "5")
            }
        })
    })?;
    Ok((system, plant, left))
}

/// `GET /v2/sites`: those of a fleet's key.
pub(super) fn sites(simulator: &Simulator, request: &Request) -> Response {
    let Some(key) = request.header("x-api-key") else { return problem(401, "Invalid API key") };
    let mut sites: Vec<_> = simulator.systems(Vendor::SolarEdge, |system| system.key.as_deref() == Some(key));
    if sites.is_empty() {
        return problem(401, "Invalid API key");
    }
    if request.param("page") != Some("1") {
        sites.clear();
    }
    let site = |system: &System| {
        json!({ "siteId": system.id, "name": format!("Site {}", system.id), "peakPower": system.peak, "activationStatus": "ACTIVE",
            "location": { "city": "Somewhere", "timezone": system.zone } })
    };
    let sites: Vec<_> = sites.into_iter().map(site).collect();
    reply(200, &json!({ "sites": { "count": sites.len(), "site": sites } }))
}

/// `GET /v2/sites/{id}`.
pub(super) fn site(simulator: &Simulator, request: &Request, id: &str) -> Response {
    match admit(simulator, request, id) {
        Err(refused) => *refused,
        Ok((system, ..)) => reply(
            200,
            &json!({ "siteId": id, "name": format!("Site {id}"), "peakPower": system.peak, "activationStatus": "ACTIVE",
                "location": { "city": "Somewhere", "timezone": system.zone } }),
        ),
    }
}

/// Serial numbers; each has half of the energy. The list of devices shows the first one only.
pub(crate) const INVERTERS: [&str; 2] = ["7E12", "7E13"];

/// `GET /v2/sites/{id}/...`.
pub(super) fn answer(simulator: &Simulator, request: &Request, id: &str, rest: &[&str]) -> Response {
    let (system, plant, left) = match admit(simulator, request, id) {
        Ok(admitted) => admitted,
        Err(refused) => return *refused,
    };
    if simulator.0.chaos.broken.is_some_and(|broken| rest.contains(&broken)) {
        return chaos::error(1);
    }
    let credential = request.header("x-api-key").unwrap_or(&system.client_id);
    let sound = data(request, plant, rest);
    let response = match simulator.0.chaos.draw() {
        None => sound,
        Some(Wrong::Error(which)) => Ok(chaos::error(which)),
        Some(Wrong::Garbage(which)) => {
            sound.map_or_else(Err, |body| Ok(chaos::garbage(which, &body_of(&body))))
        }
        Some(Wrong::Dropped) => Ok(chaos::dropped()),
        Some(Wrong::Pause(which)) => {
            let (response, until) = chaos::pause(which, request.now);
            simulator.pause(credential, until);
            Ok(response)
        }
        Some(Wrong::Revoked) => match request.bearer() {
            Some(token) => {
                simulator.0.seen.lock().tokens.revoke(token);
                Ok(problem(401, "Token expired"))
            }
            None => sound,
        },
    };
    let response = response.unwrap_or_else(|refused| *refused);
    with_header(response, "x-ratelimit-remaining-minute", &left.to_string())
}

/// The text of an answer that was made for [`chaos::garbage`].
fn body_of(response: &Response) -> String {
    response.extensions().get::<Sound>().map(|sound| sound.0.clone()).unwrap_or_default()
}

#[derive(Clone)]
struct Sound(String);

fn data(request: &Request, plant: &Plant, rest: &[&str]) -> Result<Response, Box<Response>> {
    if rest == ["devices"] {
        let device = |kind: &str, serial: &str, more: Value| {
            let mut device = json!({ "type": kind, "serialNumber": serial, "manufacturer": "SolarEdge", "active": true, "name": serial });
            device
                .as_object_mut()
                .into_iter()
                .for_each(|device| device.extend(more.as_object().cloned().unwrap_or_default()));
            device
        };
        let devices = json!([
            device("INVERTER", INVERTERS[0], json!({ "partNumber": "SE5000H" })),
            device("METER", "M-1", json!({ "model": "WND-3Y-400-MB", "meterType": "Consumption" })),
        ]);
        return Ok(reply(200, &devices));
    }
    let bad = |detail: &str| Box::new(problem(400, detail));
    let resolution = request.param("resolution").unwrap_or("QUARTER_HOUR");
    let time = |name: &str| {
        let text = request.param(name).ok_or_else(|| bad("from and to are required"))?;
        parse(text, plant).ok_or_else(|| bad("from and to are times as 2026-01-01T00:00:00"))
    };
    let (from, to) = (time("from")?, time("to")?);
    let span_max = if resolution == "DAY" { DAYS_MAX } else { SPAN_MAX };
    if to - from > span_max || to < from {
        return Err(bad("the period is too long for this resolution"));
    }
    let show = |ts: i64| {
        let zoned = Timestamp::from_microsecond(ts).unwrap_or_default().to_zoned(plant.zone.clone());
        zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
    };
    let values = |measure: Measure| -> Vec<Value> {
        if resolution == "DAY" {
            return days(plant, measure, from, to, request.now)
                .into_iter()
                .map(|(ts, value)| json!({ "timestamp": show(ts), "value": value }))
                .collect();
        }
        let first = from + (-from).rem_euclid(QUARTER);
        (first..=to.min(request.now))
            .step_by(QUARTER as usize)
            .map(|ts| json!({ "timestamp": show(ts), "value": plant.shown(measure, ts, request.now) }))
            .collect()
    };
    let period = json!({ "from": show(from), "to": show(to.min(request.now)) });
    let body = match rest {
        ["energy"] => {
            json!({ "period": period, "unit": "WH", "resolution": resolution, "values": values(Measure::Energy) })
        }
        ["power"] => {
            json!({ "period": period, "unit": "W", "resolution": resolution, "values": values(Measure::Power) })
        }
        ["meters", "telemetry"] => json!({ "period": period, "resolution": resolution, "meters": {
            "M-1": { "consumptionEnergy": { "unit": "WH", "values": values(Measure::Consumption) } } } }),
        ["inverters", "telemetry"] => {
            let values = |inverter: usize| -> Vec<Value> {
                let first = from + (-from).rem_euclid(QUARTER);
                let quarters = (first..=to.min(request.now)).step_by(QUARTER as usize);
                // Of one that is away the answer says nothing at all.
                let there = quarters.filter(|ts| !plant.is_away(inverter, *ts));
                there
                    .map(|ts| {
                        let share = plant.shown(Measure::Energy, ts, request.now).map(|all| all / 2.0);
                        json!({ "timestamp": show(ts), "value": share })
                    })
                    .collect()
            };
            let all = INVERTERS.iter().enumerate().map(|(n, serial)| {
                ((*serial).to_owned(), json!({ "energy": { "unit": "WH", "values": values(n) } }))
            });
            json!({ "period": period, "resolution": resolution, "inverters": all.collect::<serde_json::Map<_, _>>() })
        }
        _ => return Err(Box::new(problem(404, "Unknown endpoint"))),
    };
    let mut response = reply(200, &body);
    response.extensions_mut().insert(Sound(body.to_string()));
    Ok(response)
}

/// Local days that begin in a window, with what is known of them.
fn days(plant: &Plant, measure: Measure, from: i64, to: i64, now: i64) -> Vec<(i64, Option<f64>)> {
    let mut out = Vec::new();
    let mut date = Timestamp::from_microsecond(from).unwrap_or_default().to_zoned(plant.zone.clone()).date();
    loop {
        let midnight = |date: jiff::civil::Date| {
            date.to_zoned(plant.zone.clone()).ok().map(|at| at.timestamp().as_microsecond())
        };
        let Some(next) = date.tomorrow().ok() else { return out };
        let (Some(start), Some(end)) = (midnight(date), midnight(next)) else { return out };
        if start > to {
            return out;
        }
        if start >= from {
            let quarters = (start..end).step_by(QUARTER as usize);
            let known: Vec<f64> = quarters.filter_map(|ts| plant.shown(measure, ts, now)).collect();
            out.push((start, (!known.is_empty()).then(|| known.iter().sum())));
        }
        date = next;
    }
}

/// A time with an offset, in UTC, or in the site's own time; of two that look the same the first.
fn parse(text: &str, plant: &Plant) -> Option<i64> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Some(instant.as_microsecond());
    }
    let local: DateTime = text.parse().ok()?;
    Some(plant.zone.to_ambiguous_zoned(local).earlier().ok()?.timestamp().as_microsecond())
}

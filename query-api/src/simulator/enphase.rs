//! Enphase's Monitoring API, version 4.

use axum::response::Response;
use jiff::{ToSpan, civil::Date};
use serde_json::{Value, json};

use super::{
    Refusal, Request, SECOND, Simulator, System, Vendor,
    chaos::{self, Wrong},
    plant::{Measure, Plant, QUARTER},
    reply,
};

const TOKEN_LIVES: i64 = 86_400;
const DAY: i64 = 86_400 * SECOND;
/// How far back an answer goes.
const HORIZON: i64 = 730 * DAY;

fn refusal(code: u16, message: &str, details: &str) -> Response {
    reply(code, &json!({ "message": message, "details": details, "code": code }))
}

/// `POST /oauth/token`.
pub(super) fn token(simulator: &Simulator, request: &Request) -> Response {
    let is_client = request.header("authorization").is_some_and(|header| header.starts_with("Basic "));
    let old = request.param("refresh_token").unwrap_or_default();
    let fresh = simulator.0.seen.lock().tokens.refresh(old, TOKEN_LIVES, request.now);
    match fresh.filter(|_| is_client && request.method == axum::http::Method::POST) {
        Some((access, refresh)) => reply(
            200,
            &json!({ "access_token": access, "token_type": "bearer", "refresh_token": refresh, "expires_in": TOKEN_LIVES,
                "scope": "read write" }),
        ),
        None => {
            reply(401, &json!({ "error": "invalid_grant", "error_description": "Invalid refresh token" }))
        }
    }
}

/// `GET /api/v4/systems`: those of an owner.
pub(super) fn systems(simulator: &Simulator, request: &Request) -> Response {
    let key = request.param("key").unwrap_or_default();
    let token = request.bearer().unwrap_or_default();
    let mut systems = simulator.systems(Vendor::Enphase, |system| {
        system.key.as_deref() == Some(key)
            && simulator.0.seen.lock().tokens.is_valid(token, &system.id, request.now)
    });
    if systems.is_empty() {
        return refusal(401, "Not Authorized", "User is not authorized");
    }
    if request.param("page") != Some("1") {
        systems.clear();
    }
    let system = |system: &System| {
        json!({ "system_id": system.id, "name": format!("System {}", system.id), "timezone": system.zone, "system_size": -1,
            "status": "normal" })
    };
    let systems: Vec<_> = systems.into_iter().map(system).collect();
    reply(
        200,
        &json!({ "total": systems.len(), "current_page": 1, "size": 100, "items": "systems", "systems": systems }),
    )
}

/// `GET /api/v4/systems/{id}/...`.
pub(super) fn answer(simulator: &Simulator, request: &Request, id: &str, rest: &[&str]) -> Response {
    let Some((system, plant)) =
        simulator.0.systems.get(id).filter(|(system, _)| system.vendor == Vendor::Enphase)
    else {
        return refusal(404, "Not Found", "System not found");
    };
    let key = request.param("key").unwrap_or_default();
    let is_known = system.key.as_deref() == Some(key)
        && request
            .bearer()
            .is_some_and(|token| simulator.0.seen.lock().tokens.is_valid(token, id, request.now));
    if !is_known {
        return refusal(401, "Not Authorized", "User is not authorized");
    }
    if let Err(refused) = simulator.count(Vendor::Enphase, key, request.now) {
        let mut body = json!({ "message": "Too Many Requests", "details": "Usage limit exceeded for plan Watt", "code": 429 });
        if let Refusal::Minute(until) = refused {
            body["period"] = "minute".into();
            body["period_end"] = (until / SECOND).into();
        }
        return reply(429, &body);
    }
    let sound = data(request, id, plant, rest);
    match simulator.0.chaos.draw() {
        None => sound.map_or_else(|refused| *refused, |body| reply(200, &body)),
        Some(Wrong::Error(which)) => chaos::error(which),
        Some(Wrong::Garbage(which)) => {
            sound.map_or_else(|refused| *refused, |body| chaos::garbage(which, &body.to_string()))
        }
        Some(Wrong::Dropped) => chaos::dropped(),
        Some(Wrong::Pause(which)) => {
            let (response, until) = chaos::pause(which, request.now);
            simulator.pause(key, until);
            response
        }
        Some(Wrong::Revoked) => {
            if let Some(token) = request.bearer() {
                simulator.0.seen.lock().tokens.revoke(token);
            }
            refusal(401, "Not Authorized", "User is not authorized")
        }
    }
}

fn data(request: &Request, id: &str, plant: &Plant, rest: &[&str]) -> Result<Value, Box<Response>> {
    let now = request.now;
    let meta = json!({ "status": "normal", "last_report_at": now / SECOND, "last_energy_at": plant.heard_until(now) / SECOND,
        "operational_at": 1_357_023_600 });
    let (measure, field) = match rest {
        [] => {
            return Ok(
                json!({ "system_id": id, "name": format!("System {id}"), "timezone": plant.zone.iana_name() }),
            );
        }
        ["devices"] => {
            let meter = |name: &str| json!({ "name": name, "serial_number": format!("{name}-{id}"), "model": "IQ Envoy", "config_type": "Total" });
            return Ok(json!({ "system_id": id, "total_devices": 2, "items": "devices",
                "devices": { "micros": [], "meters": [meter("production"), meter("consumption")] } }));
        }
        ["energy_lifetime"] => return lifetime(request, id, plant, &meta),
        ["telemetry", "production_meter"] => (Measure::Energy, "wh_del"),
        ["telemetry", "consumption_meter"] => (Measure::Consumption, "enwh"),
        _ => return Err(Box::new(refusal(403, "Forbidden", "Not authorized to access this resource"))),
    };
    let unprocessable = |details: &str| Box::new(refusal(422, "Unprocessable Entity", details));
    let start = request
        .param("start_at")
        .and_then(|text| text.parse::<i64>().ok())
        .and_then(|at| at.checked_mul(SECOND));
    let start = start.ok_or_else(|| unprocessable("start_at is not a time"))?;
    if start > now {
        return Err(unprocessable("Requested date is in the future"));
    }
    if start < now - HORIZON {
        return Err(unprocessable(
            "Requested date range is invalid for this system: more than two years ago",
        ));
    }
    let length = match request.param("granularity") {
        Some("15mins") => QUARTER,
        Some("week") => 7 * DAY,
        _ => DAY,
    };
    let first = start + (-start).rem_euclid(QUARTER);
    let intervals: Vec<Value> = (first..(start + length).min(now))
        .step_by(QUARTER as usize)
        .filter_map(|ts| {
            let value = plant.shown(measure, ts, now)?;
            Some(json!({ "end_at": (ts + QUARTER) / SECOND, "devices_reporting": 1, field: value }))
        })
        .collect();
    Ok(
        json!({ "system_id": id, "granularity": request.param("granularity"), "total_devices": 1, "start_at": start / SECOND,
        "items": "intervals", "intervals": intervals, "meta": meta }),
    )
}

/// Wh of each local day; the days that are not known yet are zeros.
fn lifetime(request: &Request, id: &str, plant: &Plant, meta: &Value) -> Result<Value, Box<Response>> {
    let date = |name: &str| {
        let date = request.param(name).and_then(|text| text.parse::<Date>().ok());
        date.ok_or_else(|| {
            Box::new(refusal(422, "Unprocessable Entity", "start_date and end_date are dates"))
        })
    };
    let (start, end) = (date("start_date")?, date("end_date")?);
    let midnight =
        |date: Date| date.to_zoned(plant.zone.clone()).map_or(0, |at| at.timestamp().as_microsecond());
    let mut production = Vec::new();
    let mut day = start;
    while day <= end && production.len() < 4000 {
        let next = day.saturating_add(1.day());
        let quarters = (midnight(day)..midnight(next)).step_by(QUARTER as usize);
        let known: f64 = quarters.filter_map(|ts| plant.shown(Measure::Energy, ts, request.now)).sum();
        production.push((known * 10.0).round() / 10.0);
        day = next;
    }
    Ok(json!({ "system_id": id, "start_date": start.to_string(), "production": production, "meta": meta }))
}

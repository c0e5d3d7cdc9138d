//! Vendors that are simulated: an HTTP server that answers as SolarEdge's and Enphase's APIs do, for the demo and for tests.
//!
//! [What was measured](plant) is a function of the system and of time, and so is when the vendor comes to know it: gateways go offline
//! and send later, stretches come a day late, values are corrected. On top of that a vendor may [misbehave](chaos): errors, broken
//! answers, pauses, tokens that end early. What clients must not do is counted: calls beyond a quota or in a pause.

mod chaos;
mod enphase;
mod plant;
mod solaredge;
#[cfg(test)]
mod tests;
mod tokens;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri},
    response::Response,
};
use jiff::{Timestamp, tz::TimeZone};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wattlake_engine::Clock;

pub(crate) use self::chaos::Chaos;
use self::{
    plant::{Measure, Plant, QUARTER},
    tokens::Tokens,
};

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Vendor {
    SolarEdge,
    Enphase,
}

/// One system of a customer, with what its owner knows of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct System {
    pub vendor: Vendor,
    pub id: String,
    pub zone: String,
    /// kW.
    pub peak: f64,
    /// Of SolarEdge: a fleet's key; none: only its owner's grant works. Of Enphase: the application's key.
    pub key: Option<String>,
    pub client_id: String,
    pub client_secret: String,
    /// The one that the owner has got at the start.
    pub refresh_token: String,
}

/// What a vendor allows a credential.
#[derive(Clone, Copy, Debug)]
struct Quota {
    per_minute: usize,
    per_month: u64,
}

/// Calls of a credential.
#[derive(Default)]
struct Usage {
    recent: VecDeque<i64>,
    by_month: BTreeMap<(i16, i8), u64>,
    paused_until: i64,
}

#[derive(Default)]
struct Seen {
    usage: HashMap<String, Usage>,
    tokens: Tokens,
    calls: u64,
    violations: Vec<String>,
}

struct Inner {
    clock: Clock,
    systems: HashMap<String, (System, Plant)>,
    chaos: Chaos,
    quotas: [Quota; 2],
    seen: Mutex<Seen>,
}

/// The vendors' servers.
#[derive(Clone)]
pub(crate) struct Simulator(Arc<Inner>);

/// A request as the vendors see it.
struct Request {
    method: Method,
    path: Vec<String>,
    query: HashMap<String, String>,
    headers: HeaderMap,
    body: Value,
    now: i64,
}

impl Request {
    fn bearer(&self) -> Option<&str> {
        self.headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn param(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }
}

fn reply(status: u16, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

fn with_header(mut response: Response, name: &'static str, value: &str) -> Response {
    if let Ok(value) = value.parse() {
        response.headers_mut().insert(name, value);
    }
    response
}

impl Simulator {
    /// Simulates some systems at the time of a clock; `is_generous`: without the quotas of free plans.
    pub(crate) fn new(clock: Clock, systems: Vec<System>, chaos: Chaos, is_generous: bool) -> Self {
        let quota = |per_month| match is_generous {
            true => Quota { per_minute: usize::MAX, per_month: u64::MAX },
            false => Quota { per_minute: 10, per_month },
        };
        let mut tokens = Tokens::default();
        let systems = systems.into_iter().map(|system| {
            tokens.grant(&system.refresh_token, &system.id);
            let plant = Plant::new(&system);
            (system.id.clone(), (system, plant))
        });
        let systems = systems.collect();
        let seen = Mutex::new(Seen { tokens, ..Seen::default() });
        Self(Arc::new(Inner { clock, systems, chaos, quotas: [quota(2000), quota(1000)], seen }))
    }

    /// Answers requests at an address until the process ends; port 0: any that is free.
    pub(crate) async fn serve(&self, address: SocketAddr) -> std::io::Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the vendor simulator ended");
            }
        });
        Ok(address)
    }

    /// What clients did that they must not do.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.0.seen.lock().violations.clone()
    }

    pub(crate) fn calls(&self) -> u64 {
        self.0.seen.lock().calls
    }

    /// What was measured at a system; `None`: no such system.
    #[cfg(test)]
    pub(crate) fn plant(&self, system: &str) -> Option<&Plant> {
        self.0.systems.get(system).map(|(_, plant)| plant)
    }

    fn handle(&self, request: &Request) -> Response {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        match path[..] {
            ["v2", "oauth2", "token"] => solaredge::token(self, request),
            ["v2", "sites"] => solaredge::sites(self, request),
            ["v2", "sites", id] => solaredge::site(self, request, id),
            ["v2", "sites", id, ref rest @ ..] => solaredge::answer(self, request, id, rest),
            ["oauth", "token"] => enphase::token(self, request),
            ["api", "v4", "systems"] => enphase::systems(self, request),
            ["api", "v4", "systems", id, ref rest @ ..] => enphase::answer(self, request, id, rest),
            ["simulator", "violations"] => {
                let (calls, violations) = (self.calls(), self.violations());
                let refreshes = json!(self.0.seen.lock().tokens.refreshes());
                reply(200, &json!({ "calls": calls, "violations": violations, "refreshes": refreshes }))
            }
            ["simulator", "measured", id, measure] => self.measured(request, id, measure),
            _ => reply(404, &json!({ "detail": "Unknown endpoint" })),
        }
    }

    /// What was measured from one second to another, as pairs of second and value: what clients should know in the end.
    fn measured(&self, request: &Request, id: &str, measure: &str) -> Response {
        let second = |name: &str| request.param(name).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let measure = match measure {
            "energy" => Measure::Energy,
            "power" => Measure::Power,
            _ => Measure::Consumption,
        };
        let Some((_, plant)) = self.0.systems.get(id) else { return reply(404, &Value::Null) };
        let first = second("from") * SECOND + (-second("from") * SECOND).rem_euclid(QUARTER);
        let quarters = (first..second("to") * SECOND).step_by(QUARTER as usize);
        let values = quarters.filter_map(|ts| Some(json!([ts / SECOND, plant.measured(measure, ts)?])));
        reply(200, &Value::Array(values.collect()))
    }

    /// Counts a call of a credential; `Err`: what it is told instead of data.
    fn count(&self, vendor: Vendor, credential: &str, now: i64) -> Result<usize, Refusal> {
        let quota = self.0.quotas[usize::from(vendor == Vendor::Enphase)];
        let mut seen = self.0.seen.lock();
        seen.calls += 1;
        let usage = seen.usage.entry(credential.to_owned()).or_default();
        let date = Timestamp::from_microsecond(now).unwrap_or_default().to_zoned(TimeZone::UTC).date();
        let month = usage.by_month.entry((date.year(), date.month())).or_default();
        *month += 1;
        let is_over_month = *month > quota.per_month;
        while usage.recent.front().is_some_and(|call| *call <= now - MINUTE) {
            usage.recent.pop_front();
        }
        usage.recent.push_back(now);
        let is_over_minute = usage.recent.len() > quota.per_minute;
        let left = quota.per_minute.saturating_sub(usage.recent.len());
        let paused_until = usage.paused_until;
        let mut blame = |what: &str| {
            let at = Timestamp::from_microsecond(now).unwrap_or_default();
            seen.violations.push(format!("{at}: {credential} {what}"));
        };
        if paused_until > now {
            blame("called in a pause");
            return Err(Refusal::Minute(paused_until));
        }
        if is_over_month {
            blame("called beyond its month");
            return Err(Refusal::Month);
        }
        if is_over_minute {
            blame("called beyond its minute");
            return Err(Refusal::Minute(now + MINUTE));
        }
        Ok(left)
    }

    /// The systems of a vendor that somebody may see, by id.
    fn systems(&self, vendor: Vendor, may_see: impl Fn(&System) -> bool) -> Vec<&System> {
        let systems = self.0.systems.values().map(|(system, _)| system);
        let mut seen: Vec<_> = systems.filter(|system| system.vendor == vendor && may_see(system)).collect();
        seen.sort_by(|a, b| a.id.cmp(&b.id));
        seen
    }

    /// Asks a credential for a pause.
    fn pause(&self, credential: &str, until: i64) {
        self.0.seen.lock().usage.entry(credential.to_owned()).or_default().paused_until = until;
    }
}

enum Refusal {
    /// Until then.
    Minute(i64),
    Month,
}

async fn answer(
    State(simulator): State<Simulator>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let decode = |text: &str| {
        url::form_urlencoded::parse(format!("x={text}").as_bytes())
            .next()
            .map(|(_, value)| value.into_owned())
    };
    let request = Request {
        method,
        path: uri.path().split('/').filter(|part| !part.is_empty()).filter_map(decode).collect(),
        query: url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect(),
        headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        now: simulator.0.clock.now_micros(),
    };
    simulator.handle(&request)
}

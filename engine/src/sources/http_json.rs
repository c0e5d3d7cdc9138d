//! Any HTTP API that answers JSON, as a configuration says: what is asked for, and how answers are [mapped](super::mapping).

mod authorisation;

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};
use reqwest::Method;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json_path::JsonPath;
use url::Url;

pub(crate) use authorisation::Authorisation;
use authorisation::set_query;

use super::{
    budget::Limits,
    connector::{Connector, Decoded, Fresh, Stream, Window},
    failure::{CallFailure, Class},
    http::{Answer, Body, Call},
    jq,
    mapping::{self, Mapped, Mapping, ROWS_MAX, as_text, intern},
    schedule,
};

/// Requests and mappings of one source.
const PARTS_MAX: usize = 32;

/// What a preset or a user says.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Request {
    pub name: String,
    path: String,
    #[serde(default)]
    post: bool,
    #[serde(default)]
    query: BTreeMap<String, String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<Value>,
    /// For APIs that answer windows of history; without it an answer is about now.
    window: Option<WindowSpec>,
    /// What an answer must say to be one.
    ok_when: Option<Condition>,
    /// Paths that are asked for as well: the document is then `{"answer": ..., NAME: ...}`.
    #[serde(default)]
    with: BTreeMap<String, String>,
    /// An answer comes in pages: the document is the list of them.
    pages: Option<Pages>,
    /// A program that the document is put through. What it yields is the list of readings, or what `map` is for.
    jq: Option<String>,
    #[serde(default)]
    pub map: Vec<Mapping>,
    /// Only asked for where the source names it.
    #[serde(default)]
    pub optional: bool,
}

/// How the next page is asked for.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Pages {
    Next(NextAddress),
    Cursor(NextCursor),
    Number(NextNumber),
}

/// An answer has the address of the next page.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NextAddress {
    next: JsonPath,
}

/// An answer has a word that leads to the next page.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NextCursor {
    cursor: JsonPath,
    param: String,
}

/// Pages have numbers; the last one has nothing there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NextNumber {
    items: JsonPath,
    param: String,
    #[serde(default = "first_page")]
    first: u64,
}

fn first_page() -> u64 {
    1
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WindowSpec {
    #[serde(deserialize_with = "period")]
    cadence: i64,
    #[serde(deserialize_with = "period")]
    span: i64,
    #[serde(default = "minute", deserialize_with = "period")]
    settle: i64,
    #[serde(default, deserialize_with = "period")]
    overlap: i64,
    #[serde(default, deserialize_with = "some_period")]
    horizon: Option<i64>,
}

fn minute() -> i64 {
    60
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let text = String::deserialize(deserializer)?;
    let seconds = schedule::seconds(&text).filter(|seconds| (1..=3660 * 86_400).contains(seconds));
    seconds.ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no length of time, as 15min or 7d")))
}

fn some_period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    period(deserializer).map(Some)
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    path: JsonPath,
    equals: Value,
}

#[derive(Clone, Debug)]
pub(crate) struct HttpJson {
    pub base: Url,
    pub is_local: bool,
    pub system: String,
    pub zone: TimeZone,
    pub authorisation: Authorisation,
    /// SHA-256 of the device's own certificate.
    pub pin: Option<String>,
    pub requests: Vec<Request>,
}

/// Requests of known devices.
const PRESETS: [(&str, &str); 9] = [
    ("fronius", include_str!("presets/fronius.json")),
    ("homewizard", include_str!("presets/homewizard.json")),
    ("homewizard_battery", include_str!("presets/homewizard_battery.json")),
    ("homewizard_v2", include_str!("presets/homewizard_v2.json")),
    ("iq_gateway", include_str!("presets/iq_gateway.json")),
    ("opendtu", include_str!("presets/opendtu.json")),
    ("powerwall", include_str!("presets/powerwall.json")),
    ("shelly_gen2", include_str!("presets/shelly_gen2.json")),
    ("tasmota", include_str!("presets/tasmota.json")),
];

/// The requests of a preset.
///
/// # Errors
/// A text that names all presets.
pub(crate) fn preset(name: &str) -> Result<Vec<Request>, String> {
    let Some((_, text)) = PRESETS.iter().find(|(known, _)| *known == name) else {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        return Err(format!("`{name}` is not one of {}", names.join(", ")));
    };
    serde_json::from_str(text).map_err(|error| format!("the preset {name} is damaged: {error}"))
}

/// Reads requests as somebody wrote them.
///
/// # Errors
/// A text that names what is wrong.
pub(crate) fn requests(value: &Value) -> Result<Vec<Request>, String> {
    let requests: Vec<Request> =
        serde_path_to_error::deserialize(value).map_err(|error| error.to_string())?;
    let parts = |request: &Request| 1 + request.map.len() + request.with.len();
    if requests.is_empty() || requests.iter().map(parts).sum::<usize>() > PARTS_MAX {
        return Err(format!("1 to {PARTS_MAX} requests and mappings are expected"));
    }
    for Request { name, jq, map, .. } in &requests {
        match jq {
            None if map.is_empty() => return Err(format!("{name}: `map` or `jq` is required")),
            Some(program) if program.chars().count() > jq::PROGRAM_CHARS_MAX => {
                return Err(format!("{name}: a jq program has at most {} characters", jq::PROGRAM_CHARS_MAX));
            }
            _ => {}
        }
    }
    Ok(requests)
}

impl Request {
    /// Whether an answer is one.
    fn check(&self, body: &Value) -> Result<(), CallFailure> {
        let Some(Condition { path, equals }) = &self.ok_when else { return Ok(()) };
        let found = path.query(body).first().cloned().unwrap_or_default();
        if found == *equals {
            return Ok(());
        }
        let words = format!("the answer says {path} = {found}, not {equals}");
        Err(CallFailure::bad_payload(words, body.to_string().as_bytes()))
    }
}

impl HttpJson {
    fn request(&self, stream: &Stream) -> &Request {
        // A stream is made of a request.
        self.requests.iter().find(|request| request.name == stream.name).unwrap_or(&self.requests[0])
    }

    /// Replaces `{from:s}`, `{to:%Y-%m-%d}`, `{systemId}` and the like.
    fn fill(&self, template: &str, window: Window) -> String {
        let mut out = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            out.push_str(before);
            let Some((name, after)) = after.split_once('}') else {
                out.push('{');
                rest = after;
                continue;
            };
            let time = |ts: i64, format: &str| {
                let at = Timestamp::from_microsecond(ts).unwrap_or_default();
                match format {
                    "s" => at.as_second().to_string(),
                    "ms" => at.as_millisecond().to_string(),
                    "rfc3339" => at.to_string(),
                    pattern => at.to_zoned(self.zone.clone()).strftime(pattern).to_string(),
                }
            };
            match name.split_once(':') {
                Some(("from", format)) => out.push_str(&time(window.from, format)),
                Some(("to", format)) => out.push_str(&time(window.to, format)),
                _ if name == "systemId" => out.push_str(&self.system),
                _ => {
                    out.push('{');
                    out.push_str(name);
                    out.push('}');
                }
            }
            rest = after;
        }
        out + rest
    }

    fn call_of(&self, request: &Request, window: Window) -> Call {
        let mut call = self.call_to(request, &request.path, window);
        for (name, value) in &request.query {
            call.url.query_pairs_mut().append_pair(name, &self.fill(value, window));
        }
        if let Some(Pages::Number(NextNumber { param, first, .. })) = &request.pages {
            set_query(&mut call.url, param, &first.to_string());
        }
        if request.post {
            call.method = Method::POST;
            call.body = request.body.clone().map_or(Body::None, Body::Json);
        }
        call
    }

    fn call_to(&self, request: &Request, path: &str, window: Window) -> Call {
        let mut call = self.call_within(path, window);
        call.headers
            .extend(request.headers.iter().map(|(name, value)| (intern(name), self.fill(value, window))));
        call
    }

    /// A call of a path below the base.
    fn call_within(&self, path: &str, window: Window) -> Call {
        let path = self.fill(path, window);
        // Only within the base: a path cannot lead to another host.
        let mut url = self.base.clone();
        let joined = format!("{}/{}", self.base.path().trim_end_matches('/'), path.trim_start_matches('/'));
        let (path, query) =
            joined.split_once('?').map_or((joined.as_str(), None), |(path, query)| (path, Some(query)));
        url.set_path(path);
        url.set_query(query);
        let mut call = Call::get(url, self.is_local);
        call.pin.clone_from(&self.pin);
        call
    }

    /// What mappings make of a document, with what they left.
    pub(crate) fn map(&self, stream: &Stream, window: Window, body: &Value) -> Result<Mapped, CallFailure> {
        let request = self.request(stream);
        if request.jq.is_none() {
            request.check(body)?;
        }
        let mapped = if request.map.is_empty() {
            mapping::yielded(body, window.to)?
        } else {
            let mut mapped = Mapped::default();
            request.map.iter().for_each(|mapping| mapping.apply(body, &self.zone, window.to, &mut mapped));
            mapped
        };
        if mapped.is_too_long {
            let class = if stream.is_instant { Class::BadPayload } else { Class::WindowTooLarge };
            return Err(CallFailure::new(class, format!("the answer has more than {ROWS_MAX} rows")));
        }
        Ok(mapped)
    }
}

impl Connector for HttpJson {
    fn streams(&self) -> Vec<Stream> {
        let stream = |request: &Request| {
            let now = Stream {
                name: intern(&request.name),
                cadence: 1,
                span_max: 366 * 86_400,
                span_min: 1,
                settles: 0,
                overlap: 0,
                horizon: None,
                is_polled: true,
                is_sparse: true,
                is_instant: true,
            };
            match &request.window {
                None => now,
                Some(window) => Stream {
                    cadence: window.cadence,
                    span_max: window.span.max(window.cadence),
                    span_min: window.cadence,
                    settles: window.settle,
                    overlap: window.overlap,
                    horizon: window.horizon,
                    is_sparse: false,
                    is_instant: false,
                    ..now
                },
            }
        };
        self.requests.iter().map(stream).collect()
    }

    /// Devices at home have no quota; this only bounds what a slip of the pen can do.
    fn limits(&self) -> Limits {
        Limits { per_minute: 60, per_month: 1_000_000, reserve: 0.2, reset_day: 1 }
    }

    fn probe(&self) -> Call {
        self.call_of(&self.requests[0], Window { from: 0, to: 0 })
    }

    fn call(&self, stream: &Stream, window: Window, _: bool) -> Call {
        self.call_of(self.request(stream), window)
    }

    fn authorise(&self, call: &mut Call, access_token: Option<&str>) {
        self.authorisation.authorise(call, access_token);
    }

    fn respond(&self, call: &mut Call, challenge: &str) -> bool {
        self.authorisation.respond(call, challenge)
    }

    fn refresh(&self, refresh_token: &str) -> Option<Call> {
        match &self.authorisation {
            Authorisation::Oauth2(client) => Some(client.call(refresh_token, self.is_local)),
            Authorisation::Login(login) => {
                let mut call = self.call_within(&login.path, Window { from: 0, to: 0 });
                call.method = Method::POST;
                call.body = Body::Json(login.filled(&login.body));
                Some(call)
            }
            _ => None,
        }
    }

    fn fresh(&self, answer: &Answer) -> Option<Fresh> {
        let Authorisation::Login(login) = &self.authorisation else { return Fresh::of_oauth(answer) };
        Some(Fresh { access_token: login.token(answer)?, refresh_token: None, expires_in: Some(login.lives) })
    }

    fn how_to_authorise(&self) -> &'static str {
        "set metadata.auth anew"
    }

    fn more(&self, stream: &Stream, window: Window) -> Vec<(String, Call)> {
        let request = self.request(stream);
        request.with.iter().map(|(name, path)| (name.clone(), self.call_to(request, path, window))).collect()
    }

    fn is_paged(&self, stream: &Stream) -> bool {
        self.request(stream).pages.is_some()
    }

    fn next_page(
        &self,
        stream: &Stream,
        window: Window,
        page: u64,
        last: &Value,
    ) -> Result<Option<Call>, CallFailure> {
        let request = self.request(stream);
        let mut call = self.call_of(request, window);
        match &request.pages {
            None => return Ok(None),
            Some(Pages::Next(NextAddress { next })) => {
                let Some(address) = next.query(last).first().and_then(as_text) else { return Ok(None) };
                let url = self.base.join(&address).ok().filter(|url| url.origin() == self.base.origin());
                call.url = url.ok_or_else(|| {
                    CallFailure::bad_payload("the next page is on another host", address.as_bytes())
                })?;
            }
            Some(Pages::Cursor(NextCursor { cursor, param })) => {
                let Some(text) = cursor.query(last).first().and_then(as_text) else { return Ok(None) };
                set_query(&mut call.url, param, &text);
            }
            Some(Pages::Number(NextNumber { items, param, first })) => {
                if items.query(last).is_empty() {
                    return Ok(None);
                }
                set_query(&mut call.url, param, &(first + page).to_string());
            }
        }
        Ok(Some(call))
    }

    fn program(&self, stream: &Stream, body: &Value) -> Result<Option<&str>, CallFailure> {
        let request = self.request(stream);
        if request.jq.is_some() {
            request.check(body)?;
        }
        Ok(request.jq.as_deref())
    }

    fn decode(&self, stream: &Stream, window: Window, body: &Value) -> Result<Decoded, CallFailure> {
        let mapped = self.map(stream, window, body)?;
        if mapped.points.is_empty() && !mapped.unmatched.is_empty() && stream.is_instant {
            let mut first: Vec<String> =
                mapped.unmatched.iter().take(3).map(|what| what.chars().take(60).collect()).collect();
            if mapped.unmatched.len() > first.len() {
                first.push(format!("and {} more", mapped.unmatched.len() - first.len()));
            }
            let words = format!("the mapping found nothing: {}", first.join(", "));
            return Err(CallFailure::bad_payload(words, body.to_string().as_bytes()));
        }
        let mut decoded = Decoded { points: mapped.points, ..Decoded::default() };
        if !stream.is_instant {
            decoded.points.retain(|point| (window.from..window.to).contains(&point.ts));
        }
        Ok(decoded)
    }

    fn left_over(&self, stream: &Stream, window: Window, body: &Value) -> (Vec<String>, Vec<String>) {
        match self.map(stream, window, body) {
            Ok(mapped) => {
                let left = mapping::left_over(body, &mapped);
                (mapped.unmatched, left)
            }
            Err(failure) => (vec![failure.message], Vec::new()),
        }
    }

    fn failure(&self, stream: Option<&Stream>, answer: &Answer, now: i64) -> CallFailure {
        let words = format!("{} answered {}", answer.name, answer.status);
        let class = match answer.status {
            401 | 403 if self.authorisation.grant().is_some() => Class::AuthExpired,
            401 | 403 => Class::AuthDead,
            404 if stream.is_some() => Class::Forbidden,
            413 | 422 if stream.is_some_and(|stream| !stream.is_instant) => Class::WindowTooLarge,
            429 => answer.retry_after(now).map_or(Class::Retry, |until| Class::Throttled { until }),
            _ => return answer.usual_failure(now).unwrap_or_else(|| CallFailure::new(Class::Refused, words)),
        };
        CallFailure::new(class, words)
    }
}

#[cfg(test)]
mod tests;

//! Vendors on a bad day.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::{body::Body, response::Response};
use jiff::{Timestamp, tz::TimeZone};

use super::{SECOND, reply, with_header};

/// How often something is wrong, of a thousand calls.
#[derive(Debug, Default)]
pub(crate) struct Chaos {
    pub errors: u64,
    pub garbage: u64,
    pub pauses: u64,
    pub dropped: u64,
    /// Access tokens that end before their time.
    pub revoked: u64,
    /// A part of a path that always fails.
    pub broken: Option<&'static str>,
    pub seed: u64,
    pub calls: AtomicU64,
}

/// What is wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    Error(u64),
    Garbage(u64),
    Pause(u64),
    Dropped,
    Revoked,
}

impl Chaos {
    /// One call in a dozen.
    pub(crate) fn heavy(seed: u64) -> Self {
        Self {
            errors: 30,
            garbage: 20,
            pauses: 10,
            dropped: 10,
            revoked: 10,
            broken: None,
            seed,
            calls: AtomicU64::new(0),
        }
    }

    pub(super) fn draw(&self) -> Option<Wrong> {
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        // splitmix64: https://prng.di.unimi.it/splitmix64.c
        let mut z = (self.seed ^ n).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let (mut draw, which) = (z % 1000, z / 1000);
        let kinds = [
            (self.errors, Wrong::Error(which)),
            (self.garbage, Wrong::Garbage(which)),
            (self.pauses, Wrong::Pause(which)),
            (self.dropped, Wrong::Dropped),
            (self.revoked, Wrong::Revoked),
        ];
        for (share, kind) in kinds {
            if draw < share {
                return Some(kind);
            }
            draw -= share;
        }
        None
    }
}

pub(super) fn error(which: u64) -> Response {
    let status = [500, 502, 503, 504][which as usize % 4];
    let mut response = reply(
        status,
        &serde_json::json!({ "errorCode": 7, "errorMessages": ["Data is temporarily unavailable"] }),
    );
    if which.is_multiple_of(3) {
        *response.body_mut() = Body::from("<html><h1>Bad gateway</h1></html>");
    }
    response
}

/// A successful answer that is none.
pub(super) fn garbage(which: u64, sound: &str) -> Response {
    let body = match which % 8 {
        0 => "<html>maintenance</html>".to_owned(),
        1 => sound.chars().take(sound.len() / 2).collect(),
        2 => "null".to_owned(),
        3 => "[]".to_owned(),
        4 => "{}".to_owned(),
        5 => sound
            .replace("\"value\":", "\"valu\":")
            .replace("\"end_at\":", "\"end\":")
            .replace("\"production\":", "\"p\":"),
        6 => "[".repeat(5000),
        _ => sound
            .replace("\"WH\"", "\"XYZ\"")
            .replace("\"W\"", "\"XYZ\"")
            .replace("\"intervals\":", "\"interval\":"),
    };
    let mut response = reply(200, &serde_json::Value::Null);
    *response.body_mut() = Body::from(body);
    response
}

/// A connection that ends in the middle of an answer.
pub(super) fn dropped() -> Response {
    let broken: Result<&'static [u8], std::io::Error> = Err(std::io::Error::other("gone"));
    let stream = futures::stream::iter([Ok(&b"{\"values\":["[..]), broken]);
    Response::new(Body::from_stream(stream))
}

/// A pause that a vendor asks for, in seconds or as a date; and when it ends.
pub(super) fn pause(which: u64, now: i64) -> (Response, i64) {
    let seconds = 20 + (which % 600) as i64;
    let until = now + seconds * SECOND;
    let response =
        reply(if which.is_multiple_of(4) { 503 } else { 429 }, &serde_json::json!({ "detail": "slow down" }));
    if which.is_multiple_of(2) {
        return (with_header(response, "retry-after", &seconds.to_string()), until);
    }
    let at = Timestamp::from_microsecond(until).unwrap_or_default().to_zoned(TimeZone::UTC);
    (with_header(response, "retry-after", &at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()), until)
}

//! Calls of vendor APIs: https only, public addresses only, no foreign redirects, bounded answers. Sources that are marked as
//! local may be anywhere.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::fmt::rfc2822;
use parking_lot::Mutex;
use reqwest::{
    Client, ClientBuilder, Method, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE},
    redirect::Policy,
};
use serde_json::Value;
use url::{Host, Url};

use super::{
    address::is_public,
    failure::{CallFailure, Class, Secrets},
    pinned,
};
use crate::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Gateways in homes take half a minute at times.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);
/// Bytes of an answer, decompressed.
pub(crate) const ANSWER_BYTES_MAX: usize = 16 << 20;
const REDIRECTS_MAX: usize = 3;
/// A server that asks for a longer pause is asked again after this.
const PAUSE_SECONDS_MAX: i64 = 31 * 86_400;

/// A call to make.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
    /// Plain http and private addresses are fine.
    pub is_local: bool,
    /// SHA-256 of the only certificate that is trusted; for local devices.
    pub pin: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    None,
    Json(Value),
    Form(BTreeMap<String, String>),
}

impl Call {
    pub(crate) fn get(url: Url, is_local: bool) -> Self {
        Self { method: Method::GET, url, headers: Vec::new(), body: Body::None, is_local, pin: None }
    }

    /// Method, host and path: queries may hold keys.
    fn name(&self) -> String {
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{} {}{port}{}", self.method, self.url.host_str().unwrap_or_default(), self.url.path())
    }
}

/// What came back, whatever its status.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The call, without its query.
    pub name: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What it wants to know of the caller, in the scheme of RFC 7616.
    pub(crate) fn challenge(&self) -> Option<&str> {
        let challenges = self.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|text| text.to_str().ok());
        challenges.filter(|_| self.status == 401).find(|text| text.starts_with("Digest "))
    }

    /// The body as JSON; nested at most 128 deep.
    pub(crate) fn json(&self) -> Result<Value, CallFailure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            CallFailure::bad_payload(format!("{} did not answer JSON ({error})", self.name), &self.body)
        })
    }

    /// When `Retry-After` allows the next call, as seconds or as a date.
    pub(crate) fn retry_after(&self, now: i64) -> Option<i64> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
        let seconds = match text.parse::<i64>() {
            Ok(seconds) => seconds,
            // A second is added for the part of one that the date does not show.
            Err(_) => rfc2822::parse(text).ok()?.timestamp().as_second() - now.div_euclid(1_000_000) + 1,
        };
        Some(now.saturating_add(seconds.clamp(1, PAUSE_SECONDS_MAX) * 1_000_000))
    }

    /// What statuses mean with every vendor; `None` for those that the connector knows better.
    pub(crate) fn usual_failure(&self, now: i64) -> Option<CallFailure> {
        let (name, status) = (&self.name, self.status);
        let failure =
            |class, words: &str| Some(CallFailure::new(class, format!("{name} answered {status}: {words}")));
        match status {
            408 | 425 | 500..=599 => match self.retry_after(now) {
                Some(until) => failure(Class::Throttled { until }, "it asks for a pause"),
                None => failure(Class::Retry, "the vendor has a problem"),
            },
            410 => failure(Class::Gone, "this interface was switched off"),
            429 => self
                .retry_after(now)
                .and_then(|until| failure(Class::Throttled { until }, "too many calls; it asks for a pause")),
            300..=399 => {
                failure(Class::Refused, "it redirects elsewhere; set metadata.baseUrl to where it is now")
            }
            _ => None,
        }
    }
}

/// Makes calls.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    public: Client,
    local: Client,
    /// By the certificate that they trust.
    pinned: Arc<Mutex<HashMap<String, Client>>>,
}

/// What all clients have in common.
fn builder() -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("wattlake/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CALL_TIMEOUT)
        // A proxy of the environment would see keys, and would reach what we must not.
        .no_proxy()
        .redirect(Policy::custom(|attempt| {
            let first = attempt.previous().first();
            let is_same = first.is_some_and(|first| {
                (first.scheme(), first.host_str(), first.port_or_known_default())
                    == (
                        attempt.url().scheme(),
                        attempt.url().host_str(),
                        attempt.url().port_or_known_default(),
                    )
            });
            if is_same && attempt.previous().len() <= REDIRECTS_MAX {
                attempt.follow()
            } else {
                attempt.stop()
            }
        }))
}

impl HttpClient {
    pub(crate) fn new() -> Result<Self> {
        let failed = |error: reqwest::Error| Error::internal(format!("cannot make an HTTP client: {error}"));
        Ok(Self {
            public: builder().dns_resolver(Arc::new(PublicOnly)).build().map_err(failed)?,
            local: builder().build().map_err(failed)?,
            pinned: Arc::default(),
        })
    }

    /// A client that trusts one certificate.
    fn pinned(&self, pin: &str) -> Result<Client, CallFailure> {
        let mut known = self.pinned.lock();
        if let Some(client) = known.get(pin) {
            return Ok(client.clone());
        }
        let failed = |words: String| CallFailure::new(Class::Refused, words);
        let tls = pinned::config(Some(pin)).map_err(failed)?;
        let client =
            builder().use_preconfigured_tls(tls).build().map_err(|error| failed(error.to_string()))?;
        known.insert(pin.to_owned(), client.clone());
        Ok(client)
    }

    /// Makes a call. Any complete answer is one, also an error of the vendor.
    pub(crate) async fn send(&self, call: &Call, secrets: &Secrets) -> Result<Answer, CallFailure> {
        let name = call.name();
        check(call)?;
        let client = match &call.pin {
            Some(pin) => &self.pinned(pin)?,
            None if call.is_local => &self.local,
            None => &self.public,
        };
        let mut request = client.request(call.method.clone(), call.url.clone());
        for (header, value) in &call.headers {
            request = request.header(*header, value);
        }
        request = match &call.body {
            Body::None => request,
            Body::Json(body) => request.json(body),
            Body::Form(fields) => request.form(fields),
        };
        let failed = |error: reqwest::Error| {
            let words = secrets.redact(&in_words(&error.without_url()));
            let class = if words.contains(NOT_PUBLIC) { Class::Refused } else { Class::Retry };
            CallFailure::new(class, format!("{name} failed: {words}"))
        };
        let mut response = request.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(CallFailure::new(
                    Class::BadPayload,
                    format!("{name} answered more than {ANSWER_BYTES_MAX} bytes"),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        if status == StatusCode::NO_CONTENT {
            body.clear();
        }
        Ok(Answer { name, status: status.as_u16(), headers, body: body.into() })
    }
}

/// An address may be named in the URL itself: then nobody resolves it.
fn check(call: &Call) -> Result<(), CallFailure> {
    if call.is_local {
        return match call.url.scheme() {
            "http" | "https" => Ok(()),
            other => {
                Err(CallFailure::new(Class::Refused, format!("{other}:// is no address of an HTTP API")))
            }
        };
    }
    let refuse = |words: String| Err(CallFailure::new(Class::Refused, words));
    if call.url.scheme() != "https" {
        return refuse(format!(
            "{} is not https; a device in the local network needs metadata.local = true",
            call.url.host_str().unwrap_or_default()
        ));
    }
    let address = match call.url.host() {
        Some(Host::Ipv4(v4)) => IpAddr::V4(v4),
        Some(Host::Ipv6(v6)) => IpAddr::V6(v6),
        Some(Host::Domain(_)) => return Ok(()),
        None => return refuse("the address of the API has no host".to_owned()),
    };
    if is_public(address) { Ok(()) } else { refuse(format!("{address} {NOT_PUBLIC}")) }
}

const NOT_PUBLIC: &str = "is not a public address; a device in the local network needs metadata.local = true";

/// Looks names up anew for each connection, and leaves out private addresses: a name that changes its mind after a check
/// leads nowhere.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<_> = found.iter().filter(|address| is_public(address.ip())).copied().collect();
            if public.is_empty() && !found.is_empty() {
                return Err(format!("{} {NOT_PUBLIC}", name.as_str()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// An error with its causes: the last one says what happened.
fn in_words(error: &reqwest::Error) -> String {
    let mut words = if error.is_timeout() { "no answer in time".to_owned() } else { error.to_string() };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        words = format!("{words}: {inner}");
        cause = inner.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn call(url: &str, is_local: bool) -> Call {
        Call::get(url.parse().expect("a url"), is_local)
    }

    /// A server that answers one request with some text, and where it listens.
    async fn answering(text: String) -> SocketAddr {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let text = text.clone();
                tokio::spawn(async move {
                    let mut seen = [0; 4096];
                    let _ = stream.read(&mut seen).await;
                    let _ = stream.write_all(text.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn private_addresses_are_for_local_sources_only() {
        let client = HttpClient::new().expect("a client");
        for url in [
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://10.0.0.1/",
            "https://0x7f000001/",
            "https://2130706433/",
            "https://[::ffff:127.0.0.1]/",
            "https://localhost/",
            "http://api.example.com/",
        ] {
            let failure = client.send(&call(url, false), &Secrets::default()).await.expect_err(url);
            assert_eq!(failure.class, Class::Refused, "{url}: {failure}");
            assert!(failure.message.contains("metadata.local"), "{failure}");
        }
        let address = answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".into()).await;
        let answer =
            client.send(&call(&format!("http://{address}/a?key=hidden"), true), &Secrets::default()).await;
        assert_eq!(answer.expect("an answer").json().expect("JSON"), serde_json::json!({}));
    }

    #[tokio::test]
    async fn redirects_to_other_hosts_are_not_followed() {
        let client = HttpClient::new().expect("a client");
        let other = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()).await;
        let first = answering(format!(
            "HTTP/1.1 302 Found\r\nlocation: http://{other}/\r\ncontent-length: 0\r\n\r\n"
        ))
        .await;
        let answer = client
            .send(&call(&format!("http://{first}/"), true), &Secrets::default())
            .await
            .expect("an answer");
        assert_eq!(answer.status, 302);
        assert_eq!(answer.usual_failure(0).map(|failure| failure.class), Some(Class::Refused));
    }

    #[tokio::test]
    async fn answers_are_bounded() {
        let client = HttpClient::new().expect("a client");
        let large = "x".repeat(ANSWER_BYTES_MAX + 1);
        let address = answering(format!("HTTP/1.1 200 OK\r\n\r\n{large}")).await;
        let failure = client
            .send(&call(&format!("http://{address}/"), true), &Secrets::default())
            .await
            .expect_err("too much");
        assert_eq!(failure.class, Class::BadPayload);
        let deep = "[".repeat(200);
        let address = answering(format!("HTTP/1.1 200 OK\r\n\r\n{deep}")).await;
        let answer = client
            .send(&call(&format!("http://{address}/"), true), &Secrets::default())
            .await
            .expect("bytes");
        assert_eq!(answer.json().expect_err("too deep").class, Class::BadPayload);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let answer = |text: &str| {
            let headers = [(RETRY_AFTER, text.parse().expect("a header"))].into_iter().collect();
            Answer { name: "GET x".into(), status: 429, headers, body: Bytes::new() }
        };
        let now = "2026-11-27T12:00:00Z".parse::<Timestamp>().expect("a time").as_microsecond();
        assert_eq!(answer("120").retry_after(now), Some(now + 120_000_000));
        assert_eq!(answer("Fri, 27 Nov 2026 12:01:00 GMT").retry_after(now), Some(now + 61_000_000));
        assert_eq!(answer("soon").retry_after(now), None);
        assert_eq!(answer("99999999999").retry_after(now), Some(now + PAUSE_SECONDS_MAX * 1_000_000));
    }
}

//! Answers and their errors; request bodies and query strings with unknown keys refused.

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::error::{ApiError, Kind, Result};

/// How long a client should wait after 429 and 503.
const RETRY_AFTER_SECONDS: &str = "1";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.kind == Kind::Internal {
            tracing::error!(error = %self.message, "request failed");
        }
        let mut error = json!({ "kind": self.kind.as_str(), "message": self.message });
        if !self.details.is_empty() {
            error["details"] = Value::Array(self.details);
        }
        let mut response = json_response(&json!({ "error": error }));
        *response.status_mut() = status(self.kind);
        add_retry_after(&mut response);
        response
    }
}

pub(super) fn status(kind: Kind) -> StatusCode {
    StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Tells when to come again, where the status means that.
pub(super) fn add_retry_after(response: &mut Response) {
    if matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_SECONDS));
    }
    if response.status() == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"wattlake\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
}

/// A JSON answer.
pub(super) fn json_response<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], Body::from(bytes)).into_response(),
        Err(error) => ApiError::internal(format!("the answer cannot be written: {error}")).into_response(),
    }
}

pub(super) fn created<T: Serialize>(value: &T) -> Response {
    let mut response = json_response(value);
    *response.status_mut() = StatusCode::CREATED;
    response
}

/// Reads a JSON body.
///
/// # Errors
/// Naming the field, and for an unknown one the nearest that is valid.
pub(super) fn read_json<T: DeserializeOwned>(body: &Bytes) -> Result<T> {
    if body.is_empty() {
        return Err(ApiError::invalid("the body is empty; send a JSON object"));
    }
    let deserializer = &mut serde_json::Deserializer::from_slice(body);
    explain(serde_path_to_error::deserialize(deserializer))
}

/// Reads a JSON value that is in memory already.
pub(super) fn read_value<T: DeserializeOwned>(value: Value) -> Result<T> {
    explain(serde_path_to_error::deserialize(value))
}

fn explain<T>(outcome: Result<T, serde_path_to_error::Error<serde_json::Error>>) -> Result<T> {
    outcome.map_err(|error| {
        let path = error.path().to_string();
        let message = with_nearest(&error.inner().to_string());
        ApiError::invalid(if path == "." { message } else { format!("{path}: {message}") })
    })
}

/// Completes serde's "unknown field `a`, expected one of `b`, `c`" with the nearest one.
fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next().filter(|_| message.starts_with("unknown field")) else {
        return message.to_owned();
    };
    let similarity = |a: &str| strsim::jaro_winkler(&a.to_lowercase(), &unknown.to_lowercase());
    match quoted.max_by(|a, b| similarity(a).total_cmp(&similarity(b))) {
        Some(nearest) => format!("unknown field `{unknown}`; did you mean `{nearest}`? ({message})"),
        None => message.to_owned(),
    }
}

/// Reads a query string; keys in `repeatable` collect all their values, any other may come once.
pub(super) fn read_query<T: DeserializeOwned>(query: Option<&str>, repeatable: &[&str]) -> Result<T> {
    let mut map = Map::new();
    for (key, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if repeatable.contains(&&*key) {
            let list = map.entry(key.into_owned()).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                list.push(Value::String(value.into_owned()));
            }
        } else if map.contains_key(&*key) {
            return Err(ApiError::invalid(format!("query parameter `{key}` comes twice")));
        } else {
            map.insert(key.into_owned(), Value::String(value.into_owned()));
        }
    }
    serde_json::from_value(Value::Object(map)).map_err(|error| {
        let message = with_nearest(&error.to_string()).replace("unknown field", "unknown query parameter");
        ApiError::invalid(message)
    })
}

/// A yes-or-no query parameter.
pub(super) fn read_flag(name: &str, text: Option<&str>) -> Result<bool> {
    match text {
        None | Some("false" | "0") => Ok(false),
        Some("" | "true" | "1") => Ok(true),
        Some(other) => Err(ApiError::invalid(format!("{name}: `{other}` is not true or false"))),
    }
}

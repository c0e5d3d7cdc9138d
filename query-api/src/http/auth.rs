//! Who may call what.

use axum::{
    extract::Request,
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use wattlake_catalog::{Access, Scope, SiteId};

use super::App;
use crate::error::{ApiError, Kind, Result};

/// Some clients leave out the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Anybody: it tells nothing but that the server is there.
    Open,
    /// Bearers of a token with this scope, or admin.
    Needs(Scope),
}

/// Checks the rule before the body is read; what the bearer may do goes along as an extension.
pub(super) async fn authorize(app: App, rule: Rule, mut request: Request, next: Next) -> Response {
    // The request itself must not be borrowed across the await: its body is not Sync.
    let token = presented(request.headers(), request.uri().query());
    let admitted = match rule {
        Rule::Open => Ok(Access::unrestricted()),
        Rule::Needs(scope) => app.gate.admit(token.as_deref(), scope).await,
    };
    match admitted {
        Ok(access) => {
            request.extensions_mut().insert(access);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// The token of a request: bearer, InfluxDB's `Token`, a Basic password, or the query parameter `p`.
fn presented(headers: &HeaderMap, query: Option<&str>) -> Option<String> {
    presented_token(headers).or_else(|| {
        let query = query.filter(|_| !headers.contains_key(header::AUTHORIZATION))?;
        url::form_urlencoded::parse(query.as_bytes())
            .find(|(key, _)| key == "p")
            .map(|(_, value)| value.into_owned())
    })
}

/// The token in a header: bearer, InfluxDB's `Token`, or a Basic password.
pub(crate) fn presented_token(headers: &HeaderMap) -> Option<String> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, rest) = header?.split_once(' ')?;
    let rest = rest.trim();
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Some(rest.to_owned()),
        // InfluxDB 1.8's clients write user:password here.
        "token" => Some(rest.rsplit_once(':').map_or(rest, |(_, password)| password).to_owned()),
        "basic" => {
            let decoded = BASE64.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
            Some(decoded.split_once(':')?.1.to_owned())
        }
        _ => None,
    }
}

/// Refuses what lies on a site that the token is not for; the answer is that of a thing that is not there.
pub(super) fn check_site(access: &Access, site: SiteId) -> Result<()> {
    if access.allows_site(site) {
        return Ok(());
    }
    Err(ApiError::not_found(format!("no site {site}")))
}

/// Refuses tokens that are limited to some sites where the whole fleet is meant.
pub(super) fn check_unlimited(access: &Access) -> Result<()> {
    if access.sites.is_empty() {
        return Ok(());
    }
    Err(ApiError::new(Kind::Forbidden, "this token is limited to some sites"))
}

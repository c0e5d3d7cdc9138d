//! Who asks an HTTP API: keys, passwords, digests, OAuth 2 and sessions.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use digest_auth::{AuthContext, HttpMethod};
use reqwest::{Method, header::SET_COOKIE};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json_path::JsonPath;
use url::Url;

use super::{as_text, intern, period};
use crate::sources::http::{Answer, Body, Call};

/// Who asks. Secrets are fields of their own, so that they are encrypted and never shown.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind", deny_unknown_fields)]
pub(crate) enum Authorisation {
    #[default]
    None,
    Bearer {
        token: String,
    },
    Basic {
        user: String,
        password: String,
    },
    Header {
        name: String,
        token: String,
    },
    Query {
        name: String,
        token: String,
    },
    /// RFC 7616. Each call is made twice: the device asks who it is anew.
    Digest {
        user: String,
        password: String,
    },
    #[serde(rename_all = "camelCase")]
    Oauth2(Client),
    Login(Login),
}

/// OAuth 2, by a refresh token or, without one, by the client's own right.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Client {
    #[serde(deserialize_with = "address")]
    token_url: Url,
    client_id: String,
    client_secret: String,
    refresh_token: Option<String>,
    scope: Option<String>,
    #[serde(default)]
    client_auth: ClientAuth,
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| serde::de::Error::custom(format!("`{text}` is no address")))
}

/// How the client says who it is where tokens are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
enum ClientAuth {
    #[default]
    Basic,
    Form,
    Json,
}

/// A session, begun by a call of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Login {
    pub path: String,
    /// Sent as JSON, with `{password}` replaced.
    pub body: Value,
    password: String,
    take: Take,
    put: Put,
    /// How long a session is used.
    #[serde(default = "hour", deserialize_with = "period")]
    pub lives: i64,
}

fn hour() -> i64 {
    3600
}

/// Where an answer has the token of a session.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Take {
    Path(JsonPath),
    Header(String),
    Cookie(String),
}

/// Where calls have it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Put {
    Bearer,
    Header(String),
    Query(String),
    Cookie(String),
}

impl Authorisation {
    /// Adds what the API knows the caller by.
    pub(super) fn authorise(&self, call: &mut Call, access_token: Option<&str>) {
        match self {
            Self::None => {}
            Self::Bearer { token } => {
                call.headers.push(("Authorization", format!("Bearer {token}")));
            }
            Self::Basic { user, password } => {
                let who = BASE64.encode(format!("{user}:{password}"));
                call.headers.push(("Authorization", format!("Basic {who}")));
            }
            Self::Header { name, token } => call.headers.push((intern(name), token.clone())),
            Self::Query { name, token } => set_query(&mut call.url, name, token),
            // The device says first what it wants to know.
            Self::Digest { .. } => {}
            Self::Oauth2(_) => {
                let token = access_token.unwrap_or_default();
                call.headers.push(("Authorization", format!("Bearer {token}")));
            }
            Self::Login(login) => {
                let token = access_token.unwrap_or_default();
                match &login.put {
                    Put::Bearer => call.headers.push(("Authorization", format!("Bearer {token}"))),
                    Put::Header(name) => call.headers.push((intern(name), token.to_owned())),
                    Put::Query(name) => set_query(&mut call.url, name, token),
                    Put::Cookie(name) => call.headers.push(("Cookie", format!("{name}={token}"))),
                }
            }
        }
    }

    /// Answers a challenge of RFC 7616; false: the caller is not known by one.
    pub(super) fn respond(&self, call: &mut Call, challenge: &str) -> bool {
        let Self::Digest { user, password } = self else { return false };
        let Ok(mut challenge) = digest_auth::parse(challenge) else { return false };
        let uri = call
            .url
            .query()
            .map_or(call.url.path().to_owned(), |query| format!("{}?{query}", call.url.path()));
        let method = if call.method == Method::POST { HttpMethod::POST } else { HttpMethod::GET };
        let context = AuthContext::new_with_method(user, password, uri, None::<&[u8]>, method);
        let Ok(response) = challenge.respond(&context) else { return false };
        call.headers.push(("Authorization", response.to_string()));
        true
    }

    pub(crate) fn secrets(&self) -> Vec<&str> {
        match self {
            Self::None => Vec::new(),
            Self::Bearer { token } | Self::Header { token, .. } | Self::Query { token, .. } => vec![token],
            Self::Basic { password, .. } | Self::Digest { password, .. } => vec![password],
            Self::Oauth2(client) => [Some(&client.client_secret), client.refresh_token.as_ref()]
                .into_iter()
                .flatten()
                .map(String::as_str)
                .collect(),
            Self::Login(login) => vec![&login.password],
        }
    }

    /// What the first token is had for; `None`: there are no tokens that expire.
    pub(crate) fn grant(&self) -> Option<&str> {
        match self {
            Self::Oauth2(client) => Some(client.refresh_token.as_deref().unwrap_or_default()),
            Self::Login(_) => Some(""),
            _ => None,
        }
    }
}

impl Client {
    /// Asks for a token.
    pub(super) fn call(&self, refresh_token: &str, is_local: bool) -> Call {
        let mut call = Call::get(self.token_url.clone(), is_local);
        call.method = Method::POST;
        let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
        if refresh_token.is_empty() {
            fields.insert("grant_type", "client_credentials");
        } else {
            fields.insert("grant_type", "refresh_token");
            fields.insert("refresh_token", refresh_token);
        }
        fields.extend(self.scope.as_deref().map(|scope| ("scope", scope)));
        if self.client_auth == ClientAuth::Basic {
            let who = BASE64.encode(format!("{}:{}", self.client_id, self.client_secret));
            call.headers.push(("Authorization", format!("Basic {who}")));
        } else {
            fields.insert("client_id", &self.client_id);
            fields.insert("client_secret", &self.client_secret);
        }
        let fields: BTreeMap<_, _> = fields.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        call.body = match self.client_auth {
            ClientAuth::Json => Body::Json(serde_json::json!(fields)),
            ClientAuth::Basic | ClientAuth::Form => Body::Form(fields),
        };
        call
    }
}

impl Login {
    /// What is sent, with the password in its place.
    pub(super) fn filled(&self, body: &Value) -> Value {
        match body {
            Value::String(text) => text.replace("{password}", &self.password).into(),
            Value::Array(elements) => elements.iter().map(|element| self.filled(element)).collect(),
            Value::Object(members) => {
                members.iter().map(|(name, value)| (name.clone(), self.filled(value))).collect()
            }
            other => other.clone(),
        }
    }

    /// The token of the session that an answer begins.
    pub(super) fn token(&self, answer: &Answer) -> Option<String> {
        match &self.take {
            Take::Path(path) => path.query(&answer.json().ok()?).first().and_then(as_text),
            Take::Header(name) => answer.headers.get(name)?.to_str().ok().map(str::to_owned),
            Take::Cookie(name) => answer.headers.get_all(SET_COOKIE).iter().find_map(|cookie| {
                let (key, value) = cookie.to_str().ok()?.split(';').next()?.split_once('=')?;
                (key.trim() == name).then(|| value.trim().to_owned())
            }),
        }
    }
}

/// Sets a parameter, whether it is there or not.
pub(super) fn set_query(url: &mut Url, name: &str, value: &str) {
    let others: Vec<(String, String)> =
        url.query_pairs().filter(|(known, _)| known != name).map(|(k, v)| (k.into(), v.into())).collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair(name, value);
}

//! What the metadata of an energy source says about its API, checked.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use url::Url;
use wattlake_catalog::{EnergySource, EntityId};

use super::{
    budget::Limits,
    connector::{Connector, Role},
    enphase::{self, Enphase},
    failure::Secrets,
    http_json::{self, Authorisation, HttpJson},
    mqtt::{self, Broker},
    schedule::Schedule,
    solaredge::{self, Access, SolarEdge},
};

/// Providers that there is a connector for.
pub const PROVIDERS: [&str; 4] = ["enphase", "http_json", "mqtt", "solaredge"];
/// How often a source is asked that says nothing.
const EVERY: &str = "1h";

/// A source that can be asked.
#[derive(Debug)]
pub(crate) struct SourceSettings {
    pub id: EntityId,
    pub name: String,
    pub connector: Box<dyn Connector>,
    pub schedule: Schedule,
    /// Whose calls are counted together, without being a secret.
    pub credential: String,
    pub limits: Limits,
    /// The first refresh token, and what its successors are kept under.
    pub grant: Option<(String, String)>,
    pub targets: BTreeMap<Role, EntityId>,
    pub secrets: Secrets,
    /// A device in the local network with TLS, whose certificate may be pinned at the first test.
    pub may_pin: bool,
}

/// Why a source cannot be asked: a word for `connectionStatus`, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub status: &'static str,
    pub message: String,
}

fn misconfigured(message: impl Into<String>) -> Obstacle {
    Obstacle { status: "misconfigured", message: message.into() }
}

/// Whether a source is to be asked at all.
pub(crate) fn uses_api(source: &EnergySource) -> bool {
    source.active && source.metadata.get("useAPI").and_then(Value::as_bool).unwrap_or(false)
}

/// Looks at a source without its secrets.
///
/// # Errors
/// What is in the way of asking it.
pub(crate) fn provider(source: &EnergySource) -> Result<&str, Obstacle> {
    let provider = source.metadata.get("apiProvider").and_then(Value::as_str);
    match provider.filter(|_| source.metadata.get("useAPI").and_then(Value::as_bool).unwrap_or(false)) {
        None => Err(Obstacle {
            status: "not_configured",
            message: "no vendor API is configured; set metadata.useAPI to true and metadata.apiProvider"
                .into(),
        }),
        Some(provider) if PROVIDERS.contains(&provider) => Ok(provider),
        Some(provider) => Err(Obstacle {
            status: "unsupported",
            message: format!(
                "there is no connector for the provider `{provider}`; there are {}",
                PROVIDERS.join(", ")
            ),
        }),
    }
}

impl SourceSettings {
    /// Reads the metadata of a source with its secrets in plain text; `zone` is that of its site.
    ///
    /// # Errors
    /// What is missing or wrong, naming the field.
    pub(crate) fn read(source: &EnergySource, zone: &TimeZone) -> Result<Self, Obstacle> {
        let provider = provider(source)?;
        let fields = Fields { metadata: &source.metadata };
        let mut secrets = Secrets::default();
        for name in ["apiKey", "clientSecret", "refreshToken", "accessToken", "password", "token"] {
            if let Some(secret) = fields.text(name)? {
                secrets.add(secret);
            }
        }
        let is_local = fields.flag("local")?;
        let base = |default: &str| -> Result<Url, Obstacle> {
            let text = fields.text("baseUrl")?.unwrap_or(default);
            // Without it the last part of the path would be replaced.
            let text = format!("{}/", text.trim_end_matches('/'));
            let url: Url = text
                .parse()
                .map_err(|_| misconfigured(format!("metadata.baseUrl: `{text}` is no address")))?;
            if !url.username().is_empty() || url.password().is_some() {
                return Err(misconfigured(
                    "metadata.baseUrl: names a user; credentials have fields of their own",
                ));
            }
            Ok(url)
        };
        let system = match provider {
            "http_json" => fields.text("systemId")?.unwrap_or_default(),
            _ => fields.required("systemId")?,
        };
        if !system.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) || system.len() > 64 {
            return Err(misconfigured("metadata.systemId: letters, digits, - and _ only"));
        }
        let every = fields.text("updateFrequency")?.unwrap_or(EVERY);
        let schedule = Schedule::parse(every, zone)
            .map_err(|words| misconfigured(format!("metadata.updateFrequency: {words}")))?;
        let pin = fields.text("pinSha256")?;
        if pin.is_some_and(|pin| pin.len() != 64 || !pin.chars().all(|c| c.is_ascii_hexdigit())) {
            return Err(misconfigured("metadata.pinSha256: 64 hexadecimal digits are expected"));
        }
        if pin.is_some() && !is_local {
            return Err(misconfigured("metadata.pinSha256: only for sources with metadata.local = true"));
        }
        // The grant: its first refresh token, and the secrets that it ends with.
        type Found = (Box<dyn Connector>, String, Option<(String, String)>);
        let rotating = |token: &str| (token.to_owned(), token.to_owned());
        let (connector, account, grant): Found = match provider {
            "enphase" => {
                let connector = Enphase {
                    base: base(enphase::BASE)?,
                    is_local,
                    system: system.to_owned(),
                    zone: zone.clone(),
                    key: fields.required("apiKey")?.to_owned(),
                    client_id: fields.required("clientId")?.to_owned(),
                    client_secret: fields.required("clientSecret")?.to_owned(),
                    streams: fields.streams(enphase::stream_names())?,
                };
                let account = connector.key.clone();
                (Box::new(connector), account, Some(rotating(fields.required("refreshToken")?)))
            }
            "http_json" => {
                let authorisation = fields.authorisation()?;
                authorisation.secrets().into_iter().for_each(|secret| secrets.add(secret));
                if fields.text("baseUrl")?.is_none() {
                    return Err(misconfigured(
                        "metadata.baseUrl is required, for example http://192.168.1.20",
                    ));
                }
                let connector = HttpJson {
                    base: base("")?,
                    is_local,
                    system: system.to_owned(),
                    zone: zone.clone(),
                    authorisation,
                    pin: pin.map(str::to_owned),
                    requests: fields.requests()?,
                };
                let account = connector.base.to_string();
                let grant = connector
                    .authorisation
                    .grant()
                    .map(|token| (token.to_owned(), connector.authorisation.secrets().join("\0")));
                (Box::new(connector), account, grant)
            }
            _ => {
                let (access, account, grant) = match fields.text("apiKey")? {
                    Some(key) => (Access::Key(key.to_owned()), key.to_owned(), None),
                    None => {
                        let client_id = fields.text("clientId")?.ok_or_else(|| {
                            misconfigured("metadata.apiKey (of a fleet) or metadata.clientId with clientSecret and refreshToken is required")
                        })?;
                        let client_secret = fields.required("clientSecret")?.to_owned();
                        let access = Access::Grant { client_id: client_id.to_owned(), client_secret };
                        (access, client_id.to_owned(), Some(rotating(fields.required("refreshToken")?)))
                    }
                };
                let connector = SolarEdge {
                    base: base(solaredge::BASE)?,
                    is_local,
                    site: system.to_owned(),
                    zone: zone.clone(),
                    access,
                    streams: fields.streams(solaredge::stream_names())?,
                };
                (Box::new(connector), account, grant)
            }
        };
        let limits = fields.limits(connector.limits())?;
        let may_pin = is_local && pin.is_none() && connector.probe().url.scheme() == "https";
        Ok(Self {
            id: source.id,
            name: source.name.clone(),
            credential: fingerprint(&[provider, &account]),
            grant: grant.map(|(token, secrets)| (token, fingerprint(&[provider, &account, &secrets]))),
            connector,
            schedule,
            limits,
            targets: fields.targets()?,
            secrets,
            may_pin,
        })
    }

    /// Reads the metadata of a source that listens to a broker.
    ///
    /// # Errors
    /// What is missing or wrong, naming the field.
    pub(crate) fn read_broker(source: &EnergySource, zone: &TimeZone) -> Result<Broker, Obstacle> {
        let fields = Fields { metadata: &source.metadata };
        let text = fields.required("brokerUrl")?;
        let url: Option<Url> = text.parse().ok();
        let url = url.filter(|url| {
            ["mqtt", "mqtts"].contains(&url.scheme()) && url.host_str().is_some_and(|host| !host.is_empty())
        });
        let url = url.ok_or_else(|| {
            misconfigured(format!("metadata.brokerUrl: `{text}` is not like mqtt://192.168.1.5:1883 or mqtts://broker.example.com"))
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(misconfigured(
                "metadata.brokerUrl: names a user; metadata.user and metadata.password are for that",
            ));
        }
        let mut secrets = Secrets::default();
        let password = fields.text("password")?;
        password.iter().for_each(|password| secrets.add(password));
        let topics = source.metadata.get("topics").unwrap_or(&Value::Null);
        Ok(Broker {
            source: source.id,
            url,
            user: fields.text("user")?.map(str::to_owned),
            password: password.map(str::to_owned),
            is_local: fields.flag("local")?,
            zone: zone.clone(),
            topics: mqtt::topics(topics)
                .map_err(|words| misconfigured(format!("metadata.topics: {words}")))?,
            targets: fields.targets()?,
            secrets,
        })
    }

    /// Where in its interval this source is asked, from 0 to 1: sources do not all ask at once.
    pub(crate) fn phase(&self) -> f64 {
        (self.id.0.as_u128() % 1009) as f64 / 1009.0
    }
}

/// A name for a secret that does not tell it.
fn fingerprint(parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.join("\0").as_bytes());
    let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hex}", parts[0])
}

/// Fields of metadata, with errors that name them.
struct Fields<'a> {
    metadata: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn text(&self, name: &str) -> Result<Option<&'a str>, Obstacle> {
        match self.metadata.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.trim())),
            Some(_) => Err(misconfigured(format!("metadata.{name}: a text is expected"))),
        }
    }

    fn required(&self, name: &str) -> Result<&'a str, Obstacle> {
        self.text(name)?.ok_or_else(|| misconfigured(format!("metadata.{name} is required")))
    }

    fn flag(&self, name: &str) -> Result<bool, Obstacle> {
        match self.metadata.get(name) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(misconfigured(format!("metadata.{name}: true or false is expected"))),
        }
    }

    fn authorisation(&self) -> Result<Authorisation, Obstacle> {
        match self.metadata.get("auth") {
            None | Some(Value::Null) => Ok(Authorisation::None),
            Some(auth) => serde_path_to_error::deserialize(auth)
                .map_err(|error| misconfigured(format!("metadata.auth: {}", error.inner()))),
        }
    }

    /// Those of a preset, or written out; of these the ones that `streams` names, or all that are not optional.
    fn requests(&self) -> Result<Vec<http_json::Request>, Obstacle> {
        let mut requests = self.all_requests()?;
        let names = |wanted: fn(&http_json::Request) -> bool| {
            requests.iter().filter(|request| wanted(request)).map(|request| request.name.as_str()).collect()
        };
        let named = self.streams((names(|_| true), names(|request| !request.optional)))?;
        requests.retain(|request| named.contains(&request.name));
        if requests.is_empty() {
            return Err(misconfigured("metadata.streams: all of them are optional; name some"));
        }
        Ok(requests)
    }

    fn all_requests(&self) -> Result<Vec<http_json::Request>, Obstacle> {
        match (self.text("preset")?, self.metadata.get("requests").filter(|requests| !requests.is_null())) {
            (Some(name), None) => {
                http_json::preset(name).map_err(|words| misconfigured(format!("metadata.preset: {words}")))
            }
            (None, Some(requests)) => http_json::requests(requests)
                .map_err(|words| misconfigured(format!("metadata.requests: {words}"))),
            _ => Err(misconfigured("either metadata.preset or metadata.requests is required")),
        }
    }

    fn streams(&self, (known, default): (Vec<&str>, Vec<&str>)) -> Result<Vec<String>, Obstacle> {
        let named = match self.metadata.get("streams") {
            None | Some(Value::Null) => return Ok(default.into_iter().map(str::to_owned).collect()),
            Some(Value::Array(named)) if !named.is_empty() => named,
            Some(_) => return Err(misconfigured("metadata.streams: a list of names is expected")),
        };
        let check = |name: &Value| match name.as_str().filter(|name| known.contains(name)) {
            Some(name) => Ok(name.to_owned()),
            None => {
                Err(misconfigured(format!("metadata.streams: {name} is not one of {}", known.join(", "))))
            }
        };
        named.iter().map(check).collect()
    }

    fn targets(&self) -> Result<BTreeMap<Role, EntityId>, Obstacle> {
        let targets = match self.metadata.get("targets") {
            None | Some(Value::Null) => return Ok(BTreeMap::new()),
            Some(Value::Object(targets)) => targets,
            Some(_) => {
                return Err(misconfigured("metadata.targets: an object from role to entity id is expected"));
            }
        };
        let read = |(role, id): (&String, &Value)| {
            let known = Role::ALL.iter().find(|(name, _)| name == role).map(|(_, role)| *role);
            let known = known.ok_or_else(|| {
                let names: Vec<_> = Role::ALL.iter().map(|(name, _)| *name).collect();
                misconfigured(format!("metadata.targets: `{role}` is not one of {}", names.join(", ")))
            })?;
            let id = id.as_str().and_then(|id| id.parse().ok());
            let id = id
                .ok_or_else(|| misconfigured(format!("metadata.targets.{role}: an entity id is expected")))?;
            Ok((known, id))
        };
        targets.iter().map(read).collect()
    }

    /// The vendor's limits with those that `metadata.budget` names instead.
    fn limits(&self, mut limits: Limits) -> Result<Limits, Obstacle> {
        let budget = match self.metadata.get("budget") {
            None | Some(Value::Null) => return Ok(limits),
            Some(Value::Object(budget)) => budget,
            Some(_) => return Err(misconfigured("metadata.budget: an object is expected")),
        };
        for (name, value) in budget {
            let wrong = |valid: &str| misconfigured(format!("metadata.budget.{name}: {valid} is expected"));
            let whole = |max: i64| {
                let valid = value.as_i64().filter(|n| (1..=max).contains(n));
                valid.ok_or_else(|| wrong(&format!("a number from 1 to {max}")))
            };
            match name.as_str() {
                "perMinute" => limits.per_minute = whole(10_000)? as usize,
                "perMonth" => limits.per_month = whole(100_000_000)?,
                "resetDay" => limits.reset_day = whole(31)? as i8,
                "reserve" => {
                    let valid = value.as_f64().filter(|share| (0.0..=0.9).contains(share));
                    limits.reserve = valid.ok_or_else(|| wrong("a share from 0 to 0.9"))?;
                }
                _ => {
                    return Err(misconfigured(format!(
                        "metadata.budget: `{name}` is not one of perMinute, perMonth, reserve, resetDay"
                    )));
                }
            }
        }
        Ok(limits)
    }
}

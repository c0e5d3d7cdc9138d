//! Access tokens: `wl_<id>_<secret>`. Only the SHA-256 of the secret is stored; it is random, so it needs no salt or
//! slow hash.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    Error, Result, SiteId,
    db::{Db, Row, params},
};

/// What a token may do. Each scope is granted on its own; admin includes the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Read,
    Write,
    Admin,
}

impl Scope {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "read" => Ok(Self::Read),
            "write" => Ok(Self::Write),
            "admin" => Ok(Self::Admin),
            _ => Err(Error::invalid(format!("unknown scope `{text}`; valid are read, write, admin"))),
        }
    }
}

/// A token as it is listed; the secret is not in it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    pub id: String,
    pub name: String,
    pub scopes: Vec<Scope>,
    /// Empty: all sites.
    pub sites: Vec<SiteId>,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
    #[serde(skip)]
    secret_sha256: String,
}

/// What to make a token with.
#[derive(Clone, Debug)]
pub struct NewToken {
    pub name: String,
    pub scopes: Vec<Scope>,
    pub sites: Vec<SiteId>,
}

/// What the bearer of a request may do.
#[derive(Clone, Debug)]
pub struct Access {
    pub token_id: String,
    pub scopes: Vec<Scope>,
    /// Empty: all sites.
    pub sites: Vec<SiteId>,
}

impl Access {
    /// Access of a server that runs without tokens, on loopback only.
    pub fn unrestricted() -> Self {
        Self { token_id: "none".into(), scopes: vec![Scope::Admin], sites: vec![] }
    }

    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&Scope::Admin) || self.scopes.contains(&scope)
    }

    pub fn allows_site(&self, site: SiteId) -> bool {
        self.sites.is_empty() || self.sites.contains(&site)
    }
}

impl Token {
    /// What `presented` gives, if it is this token, unrevoked. Compares in constant time.
    pub(crate) fn access(&self, secret: &str) -> Option<Access> {
        let presented = hash(secret);
        let equal: bool = presented.as_bytes().ct_eq(self.secret_sha256.as_bytes()).into();
        (equal && self.revoked_at.is_none()).then(|| Access {
            token_id: self.id.clone(),
            scopes: self.scopes.clone(),
            sites: self.sites.clone(),
        })
    }
}

/// Splits a presented token into id and secret.
pub(crate) fn split(presented: &str) -> Option<(&str, &str)> {
    presented.strip_prefix("wl_")?.split_once('_')
}

fn hash(secret: &str) -> String {
    use fmt::Write as _;
    Sha256::digest(secret.as_bytes()).iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Makes a token and answers it in full, for the only time; `keep` gets it before it is valid.
pub(crate) async fn create(
    db: &Db,
    new: &NewToken,
    now: Timestamp,
    keep: impl FnOnce(&str) -> Result<()> + Send,
) -> Result<String> {
    if new.scopes.is_empty() {
        return Err(Error::invalid("a token needs at least one scope: read, write or admin"));
    }
    if new.name.trim().is_empty() || new.name.chars().count() > 200 {
        return Err(Error::invalid("token name: 1 to 200 characters"));
    }
    let id_bytes: [u8; 6] = rand::random();
    let id = id_bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let secret_bytes: [u8; 32] = rand::random();
    let secret = URL_SAFE_NO_PAD.encode(secret_bytes);
    let join = |parts: Vec<String>| parts.join(",");
    let mut tx = db.begin().await?;
    tx.execute(
        "INSERT INTO wattlake_token (id, name, secret_sha256, scopes, sites, created_at, revoked_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        params![
            id.as_str(),
            new.name.as_str(),
            hash(&secret),
            join(new.scopes.iter().map(ToString::to_string).collect()),
            join(new.sites.iter().map(ToString::to_string).collect()),
            now,
            None::<Timestamp>
        ],
    )
    .await?;
    let token = format!("wl_{id}_{secret}");
    keep(&token)?;
    crate::failpoint!("token.before_commit");
    tx.commit().await?;
    Ok(token)
}

pub(crate) async fn list(db: &Db) -> Result<Vec<Token>> {
    let sql = "SELECT id, name, secret_sha256, scopes, sites, created_at, revoked_at FROM wattlake_token \
               ORDER BY created_at, id";
    db.rows(sql, vec![]).await?.iter().map(read).collect()
}

pub(crate) async fn revoke(db: &Db, id: &str, now: Timestamp) -> Result<()> {
    let mut tx = db.begin().await?;
    let sql = "UPDATE wattlake_token SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
    if tx.execute(sql, params![id, now]).await? == 0 {
        return Err(Error::not_found(format!("no valid token with id `{id}`; see `wattlake token list`")));
    }
    tx.commit().await
}

fn read(row: &Row) -> Result<Token> {
    fn parts<T: FromStr<Err = Error>>(text: &str) -> Result<Vec<T>> {
        text.split(',').filter(|part| !part.is_empty()).map(str::parse).collect()
    }
    Ok(Token {
        id: row.text(0)?,
        name: row.text(1)?,
        secret_sha256: row.text(2)?,
        scopes: parts(&row.text(3)?)?,
        sites: parts(&row.text(4)?)?,
        created_at: row.time(5)?,
        revoked_at: row.opt_time(6)?,
    })
}

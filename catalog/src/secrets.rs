//! Secrets in metadata: encrypted at rest with XChaCha20-Poly1305, masked on the way out, never logged.
//!
//! The key is a file of its own (mode 0600) beside the catalog, so that a copy of the database alone gives nothing
//! away. A sealed value is `enc:v1:` and base64 of nonce (24 bytes) and ciphertext; entity id and field name are
//! authenticated with it, so that a value moved to another row does not open.

use std::{io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{Error, Result};

/// Where secrets are sent to.
const ADDRESS_FIELDS: &[&str] = &["baseUrl", "brokerUrl", "tokenUrl"];
/// What a secret looks like in answers; sent back, it means "unchanged".
pub const MASK: &str = "***";
const PREFIX: &str = "enc:v1:";
/// Metadata fields that hold secrets, at any depth.
const SECRET_FIELDS: &[&str] =
    &["apiKey", "apiSecret", "clientSecret", "accessToken", "refreshToken", "password", "token", "secret"];

/// The key of the data directory.
#[derive(Clone)]
pub struct SecretKey(XChaCha20Poly1305);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(***)")
    }
}

impl SecretKey {
    /// Reads the key file, or makes one (mode 0600) when there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`](crate::ErrorKind::Internal) naming the file when it cannot be read, written or decoded.
    pub fn load_or_create(path: &Path) -> Result<Self> {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let bytes = BASE64.decode(text.trim()).ok();
                let cipher = bytes.and_then(|bytes| XChaCha20Poly1305::new_from_slice(&bytes).ok());
                cipher.map(Self).ok_or_else(|| {
                    Error::internal(format!(
                        "key file {} does not hold a base64 key of 32 bytes",
                        path.display()
                    ))
                })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key: [u8; 32] = rand::random();
                let write = || {
                    let mut file =
                        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                    writeln!(file, "{}", BASE64.encode(key))?;
                    file.sync_all()
                };
                write().map_err(|error| {
                    Error::internal(format!("cannot write key file {}: {error}", path.display()))
                })?;
                Ok(Self(XChaCha20Poly1305::new(&key.into())))
            }
            Err(error) => Err(Error::internal(format!("cannot read key file {}: {error}", path.display()))),
        }
    }

    pub(crate) fn seal(&self, plain: &str, owner: Uuid, field: &str) -> Result<String> {
        let nonce_bytes: [u8; 24] = rand::random();
        let nonce = XNonce::from(nonce_bytes);
        let aad = associated_data(owner, field);
        let sealed = self
            .0
            .encrypt(&nonce, Payload { msg: plain.as_bytes(), aad: &aad })
            .map_err(|_| Error::internal(format!("cannot encrypt metadata.{field}")))?;
        Ok(format!("{PREFIX}{}", BASE64.encode([&nonce_bytes[..], &sealed].concat())))
    }

    /// Opens a sealed value of an entity's metadata field.
    ///
    /// # Errors
    /// When the value was sealed with another key, for another entity or field, or was altered.
    pub fn open(&self, sealed: &str, owner: Uuid, field: &str) -> Result<String> {
        let wrong = || {
            Error::internal(format!(
                "metadata.{field} of {owner} does not open with this data directory's key"
            ))
        };
        let bytes =
            sealed.strip_prefix(PREFIX).and_then(|text| BASE64.decode(text).ok()).ok_or_else(wrong)?;
        let (nonce, ciphertext) = bytes.split_at_checked(24).ok_or_else(wrong)?;
        let nonce: [u8; 24] = nonce.try_into().map_err(|_| wrong())?;
        let aad = associated_data(owner, field);
        let plain = self
            .0
            .decrypt(&XNonce::from(nonce), Payload { msg: ciphertext, aad: &aad })
            .map_err(|_| wrong())?;
        String::from_utf8(plain).map_err(|_| wrong())
    }

    /// Encrypts every plain secret in the metadata of `owner`. `***` is replaced by what `before` held, unless the address changes that it
    /// is for: whoever may change an address must not learn with it what is sent there.
    pub(crate) fn seal_metadata(
        &self,
        metadata: &mut Map<String, Value>,
        before: Option<&Map<String, Value>>,
        owner: Uuid,
    ) -> Result<()> {
        self.seal_within(metadata, before, owner, None)
    }

    fn seal_within(
        &self,
        metadata: &mut Map<String, Value>,
        before: Option<&Map<String, Value>>,
        owner: Uuid,
        moved: Option<&'static str>,
    ) -> Result<()> {
        let host = |metadata: &Map<String, Value>, field: &str| {
            metadata.get(field).and_then(Value::as_str).map(|address| host_of(address).to_owned())
        };
        let here = |field: &&&str| before.is_some_and(|before| host(before, field) != host(metadata, field));
        let moved = ADDRESS_FIELDS.iter().find(here).copied().or(moved);
        let mut unsealed = Vec::new();
        for (field, value) in metadata.iter_mut() {
            let old = before.and_then(|b| b.get(field));
            match value {
                Value::Object(inner) => {
                    self.seal_within(inner, old.and_then(Value::as_object), owner, moved)?;
                }
                Value::String(text) if SECRET_FIELDS.contains(&field.as_str()) => {
                    if text == MASK {
                        match (old, moved) {
                            (Some(_), Some(address)) => {
                                return Err(Error::invalid(format!(
                                    "metadata.{field}: give it anew, since {address} changes"
                                )));
                            }
                            (Some(old), None) => *value = old.clone(),
                            (None, _) => unsealed.push(field.clone()),
                        }
                    } else if old.and_then(Value::as_str) != Some(text) {
                        *value = Value::String(self.seal(text, owner, field)?);
                    }
                }
                Value::Null | Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                    if SECRET_FIELDS.contains(&field.as_str())
                        && !matches!(value, Value::Null | Value::String(_))
                    {
                        return Err(Error::invalid(format!("metadata.{field}: a secret is a text")));
                    }
                }
            }
        }
        for field in unsealed {
            metadata.remove(&field);
        }
        Ok(())
    }
}

impl SecretKey {
    /// Puts plain text into the place of every sealed secret in the metadata of `owner`.
    pub(crate) fn open_metadata(&self, metadata: &mut Map<String, Value>, owner: Uuid) -> Result<()> {
        for (field, value) in metadata.iter_mut() {
            match value {
                Value::Object(inner) => self.open_metadata(inner, owner)?,
                Value::String(text)
                    if text.starts_with(PREFIX) && SECRET_FIELDS.contains(&field.as_str()) =>
                {
                    *value = Value::String(self.open(text, owner, field)?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Scheme, host and port of an address.
fn host_of(address: &str) -> &str {
    let address = address.trim();
    let start = address.find("://").map_or(0, |scheme| scheme + 3);
    let end = address[start..].find(['/', '?', '#']).map_or(address.len(), |path| start + path);
    &address[..end]
}

fn associated_data(owner: Uuid, field: &str) -> Vec<u8> {
    [owner.as_bytes().as_slice(), field.as_bytes()].concat()
}

/// Replaces every secret by [`MASK`]; what is kept in memory and given out is masked.
pub(crate) fn mask_metadata(metadata: &mut Map<String, Value>) {
    for (field, value) in metadata.iter_mut() {
        match value {
            Value::Object(inner) => mask_metadata(inner),
            Value::String(text) if SECRET_FIELDS.contains(&field.as_str()) => MASK.clone_into(text),
            _ => {}
        }
    }
}

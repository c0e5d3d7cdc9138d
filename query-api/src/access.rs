//! Who is let in, whatever the protocol.

use std::sync::Arc;

use wattlake_catalog::{Access, Scope};
use wattlake_engine::Engine;

use crate::error::{ApiError, Kind, Result};

/// Checks tokens.
#[derive(Clone)]
pub(crate) struct Gate {
    engine: Arc<Engine>,
    /// Off only for `demo`, on loopback.
    requires_token: bool,
}

impl Gate {
    pub(crate) fn new(engine: Arc<Engine>, requires_token: bool) -> Self {
        Self { engine, requires_token }
    }

    /// What the bearer of a token may do.
    ///
    /// # Errors
    /// No token or one that is not valid ([`Kind::Unauthorized`]), or one without the scope ([`Kind::Forbidden`]).
    pub(crate) async fn admit(&self, token: Option<&str>, scope: Scope) -> Result<Access> {
        if !self.requires_token {
            return Ok(Access::unrestricted());
        }
        let token = token.ok_or_else(|| {
            ApiError::new(
                Kind::Unauthorized,
                "a token is needed; send the header Authorization: Bearer TOKEN",
            )
        })?;
        let access = self.engine.catalog().authenticate(token).await?;
        let access = access.ok_or_else(|| ApiError::new(Kind::Unauthorized, "the token is not valid"))?;
        if !access.allows(scope) {
            return Err(ApiError::new(Kind::Forbidden, format!("this token lacks the scope {scope}")));
        }
        Ok(access)
    }
}

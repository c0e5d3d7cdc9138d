//! Answers that need not be sent again: a client that comes with the tag of what it has gets 304 as long as nothing changed.
//!
//! A tag stands for the state of the archive and of the fleet, the token, and the question. It is given where the answer
//! depends on nothing else, time included.

use std::hash::{BuildHasher, Hash, RandomState};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use wattlake_catalog::Access;

use super::App;

/// The tag of one answer.
pub(super) struct Tag(HeaderValue);

/// Makes tags; those of another process are never equal.
#[derive(Clone, Default)]
pub(crate) struct Tagger(RandomState);

impl Tagger {
    /// The tag of the answer to a question at this moment. Taken before the answer is made: what changes meanwhile makes the
    /// tag an old one.
    pub(super) fn tag(&self, app: &App, access: &Access, question: impl Hash) -> Tag {
        let state = (app.engine.read_view().stamp(), app.engine.catalog().fleet().revision());
        let hash = self.0.hash_one((state, &access.token_id, question));
        let text = format!("W/\"{hash:016x}\"");
        Tag(HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("W/\"\"")))
    }
}

impl Tag {
    /// The answer to a client that has it already.
    pub(super) fn unchanged(&self, headers: &HeaderMap) -> Option<Response> {
        let theirs = headers.get(header::IF_NONE_MATCH)?.to_str().ok()?;
        let ours = self.0.to_str().ok()?;
        let is_known = theirs.split(',').any(|tag| tag.trim() == ours || tag.trim() == "*");
        is_known.then(|| self.on(StatusCode::NOT_MODIFIED.into_response()))
    }

    /// An answer with its tag. Clients ask again each time, and only they keep it.
    pub(super) fn on(&self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.0.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        headers.append(header::VARY, HeaderValue::from_static("authorization, accept"));
        response
    }
}

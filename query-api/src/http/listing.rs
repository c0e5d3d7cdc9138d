//! Paging of catalog lists: `?limit=&cursor=`; the next cursor is in the header `X-Next-Cursor`.

use axum::{http::HeaderValue, response::Response};
use serde::Serialize;

use super::reply::json_response;
use crate::error::{ApiError, Result};

const LIMIT_DEFAULT: usize = 1000;
const LIMIT_MAX: usize = 10_000;

/// How many rows a list may have.
pub(super) fn read_limit(text: Option<&str>) -> Result<usize> {
    let Some(text) = text else { return Ok(LIMIT_DEFAULT) };
    text.parse()
        .ok()
        .filter(|n| (1..=LIMIT_MAX).contains(n))
        .ok_or_else(|| ApiError::invalid(format!("limit: `{text}` is not a number from 1 to {LIMIT_MAX}")))
}

/// One page of things that come ordered by id. The cursor is the last id of the page before.
pub(super) fn page<'a, T: Serialize + 'a>(
    items: impl Iterator<Item = &'a T>,
    id: impl Fn(&T) -> uuid::Uuid,
    limit: Option<&str>,
    cursor: Option<&str>,
) -> Result<Response> {
    let limit = read_limit(limit)?;
    let after: Option<uuid::Uuid> = cursor
        .map(|text| {
            text.parse().map_err(|_| ApiError::invalid(format!("cursor: `{text}` is not one of ours")))
        })
        .transpose()?;
    let mut rest = items.filter(|item| after.is_none_or(|after| id(item) > after)).peekable();
    let rows: Vec<&T> = rest.by_ref().take(limit).collect();
    let mut response = json_response(&rows);
    if rest.peek().is_some()
        && let Some(last) = rows.last()
    {
        add_cursor(&mut response, &id(last).to_string());
    }
    Ok(response)
}

pub(super) fn add_cursor(response: &mut Response, cursor: &str) {
    if let Ok(value) = HeaderValue::from_str(cursor) {
        response.headers_mut().insert("x-next-cursor", value);
    }
}

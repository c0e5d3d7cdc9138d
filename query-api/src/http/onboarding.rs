//! `POST /api/onboarding/complete`: a site with its whole tree, in one transaction.

use axum::{Extension, body::Bytes, extract::State, response::Response};
use wattlake_catalog::{Access, OnboardingDraft};

use super::{
    App,
    auth::check_unlimited,
    reply::{created, read_json},
};
use crate::error::Result;

pub(super) async fn complete(
    State(app): State<App>,
    Extension(access): Extension<Access>,
    body: Bytes,
) -> Result<Response> {
    let draft: OnboardingDraft = read_json(&body)?;
    check_unlimited(&access)?;
    Ok(created(&app.engine.catalog().onboard(&draft).await?))
}

//! `wattlake serve`.

use super::{Common, Failure, logging};
use crate::server;

pub(super) async fn run(common: &Common) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, false)?;
    let open = server::open(&settings).await?;
    let listening = server::listen(&settings, &open, true).await?;
    let address =
        |address: Option<std::net::SocketAddr>| address.map_or("off".to_owned(), |at| at.to_string());
    tracing::info!(
        address = %listening.http.address,
        postgres = address(listening.postgres.as_ref().map(|endpoint| endpoint.address)),
        flight = address(listening.flight.as_ref().map(|endpoint| endpoint.address)),
        tls = !settings.tls.cert.is_empty(),
        data_dir = %settings.data_dir.0.display(),
        "listening"
    );
    server::run(open, listening, server::termination()).await
}

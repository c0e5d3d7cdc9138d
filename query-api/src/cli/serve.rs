//! `wattlake serve`.

use super::{Common, Failure, logging};
use crate::server;

pub(super) async fn run(common: &Common) -> Result<(), Failure> {
    let settings = common.settings()?;
    logging::init(&settings.log, false)?;
    let open = server::open(&settings).await?;
    let listening = server::listen(&settings, &open, true).await?;
    tracing::info!(address = %listening.address, data_dir = %settings.data_dir.0.display(), "listening");
    server::run(open, listening, server::termination()).await
}

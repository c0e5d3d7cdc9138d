//! Encrypted connections.

use std::{path::Path, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};
use wattlake_config::Tls;

use crate::cli::Failure;

/// Accepts TLS 1.2 and 1.3 with the configured certificate; `None` when there is none. `protocols` are the names that
/// clients may negotiate (ALPN).
///
/// # Errors
/// Files that cannot be read or do not fit together: the server then does not start.
pub(crate) fn acceptor(settings: &Tls, protocols: &[&str]) -> Result<Option<TlsAcceptor>, Failure> {
    if settings.cert.is_empty() {
        return Ok(None);
    }
    let bad = |key: &str, path: &str, error: &dyn std::fmt::Display| {
        Failure::usage(format!("{key}: cannot use {path}: {error}"))
    };
    let chain = CertificateDer::pem_file_iter(Path::new(&settings.cert))
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad("tls.cert", &settings.cert, &error))?;
    let key = PrivateKeyDer::from_pem_file(Path::new(&settings.key))
        .map_err(|error| bad("tls.key", &settings.key, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| bad("tls.cert", &settings.cert, &error))?;
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

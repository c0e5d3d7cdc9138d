//! TLS of devices that have made their certificate themselves: it is known by its SHA-256, which was seen at the first connection test.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};
use url::Url;

/// Lets one certificate pass, and no other.
#[derive(Debug)]
struct OneCertificate {
    /// Hexadecimal; none: any, to look at it.
    sha256: Option<String>,
    provider: Arc<CryptoProvider>,
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl ServerCertVerifier for OneCertificate {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match &self.sha256 {
            Some(known) if !known.eq_ignore_ascii_case(&fingerprint(certificate)) => {
                Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// TLS that trusts the certificate with this SHA-256 alone.
///
/// # Errors
/// A text when TLS cannot be set up.
pub(crate) fn config(sha256: Option<&str>) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier = OneCertificate { sha256: sha256.map(str::to_owned), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// The SHA-256 of the certificate that a device shows; nothing is sent to it.
///
/// # Errors
/// A text when it cannot be reached.
pub(crate) async fn seen(url: &Url) -> Result<String, String> {
    let host = url.host_str().unwrap_or_default();
    let look = async {
        let stream = TcpStream::connect((host, url.port_or_known_default().unwrap_or(443))).await?;
        let name =
            ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(std::io::Error::other)?;
        let config = config(None).map_err(std::io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        certificates
            .and_then(|all| all.first())
            .map(fingerprint)
            .ok_or_else(|| std::io::Error::other("no certificate"))
    };
    match tokio::time::timeout(std::time::Duration::from_secs(10), look).await {
        Ok(seen) => seen.map_err(|error| format!("{host}: {error}")),
        Err(_) => Err(format!("{host}: no answer in time")),
    }
}

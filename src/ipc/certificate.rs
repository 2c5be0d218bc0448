//! Certificates as they go to a worker.

use serde::{Deserialize, Serialize};

/// Names a certificate and its key by their digest: any other content is another certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CertificateId(pub [u8; 32]);

/// A certificate with its key, as a worker gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireCertificate {
    /// The name by which tables refer to the certificate.
    pub id: CertificateId,
    /// The hosts that the certificate is for, in lower case, also `*.example`.
    pub names: Vec<String>,
    /// The chain in DER, the server's own certificate first.
    pub chain: Vec<Vec<u8>>,
    /// The private key in DER.
    pub key: Secret,
}

/// Bytes that `Debug` never shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

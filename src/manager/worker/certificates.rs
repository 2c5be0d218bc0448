//! The certificates in use, with the content that their files had when they were last read.
//!
//! Certificates are read when a configuration is planned, and kept until the next good
//! configuration. So the files on disk may be broken for a while, or the certificate may be newer
//! than its key, and clients notice nothing. Keys are kept only here and in the workers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Certificate, CertificateFault, ServiceConfig, TlsConfig};
use crate::ipc::{CertificateId, Secret, WireCertificate};

/// The certificates in use, by the paths of the certificate and the key.
#[derive(Debug, Clone, Default)]
pub struct ServiceCertificates {
    known: BTreeMap<(PathBuf, PathBuf), Arc<Certificate>>,
}

fn place(tls: &TlsConfig) -> (PathBuf, PathBuf) {
    (tls.certificate.clone(), tls.key.clone())
}

impl ServiceCertificates {
    /// Reads the certificate of a service, if it has one. Reading files may take any time.
    pub fn read(service: &ServiceConfig) -> Result<ServiceCertificates, CertificateFault> {
        let mut certificates = ServiceCertificates::default();
        if let Some(tls) = &service.tls {
            let certificate = Arc::new(Certificate::read(tls)?);
            certificates.known.insert(place(tls), certificate);
        }
        Ok(certificates)
    }

    /// Returns the certificate of a service.
    pub fn get(&self, service: &ServiceConfig) -> Option<&Arc<Certificate>> {
        self.known.get(&place(service.tls.as_ref()?))
    }

    /// Returns the certificate with this id in the form that workers get.
    pub fn message(&self, id: CertificateId) -> Option<WireCertificate> {
        let mut known = self.known.values();
        let certificate = known.find(|certificate| certificate.digest == id.0)?;
        Some(WireCertificate {
            id,
            names: certificate.hosts.clone(),
            chain: certificate.chain.iter().map(|part| part.to_vec()).collect(),
            key: Secret(certificate.key.secret_der().to_vec()),
        })
    }

    /// Keeps the known certificate of a service for which no newer one was read.
    pub fn keep(&mut self, service: &ServiceConfig, known: &ServiceCertificates) {
        if let (Some(tls), Some(certificate)) = (&service.tls, known.get(service)) {
            let entry = self.known.entry(place(tls));
            entry.or_insert_with(|| certificate.clone());
        }
    }

    /// Adds the certificates of `others`. They replace certificates with the same paths.
    pub fn extend(&mut self, others: ServiceCertificates) {
        self.known.extend(others.known);
    }
}

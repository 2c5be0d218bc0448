//! The certificates that are in use, as they were when they were last read.
//!
//! They are read when a configuration is planned, and kept until the next one that is good. So what lies on disk may be
//! broken for a while, or of two files one may be newer than the other, without anybody noticing. Keys are kept here and
//! in the workers, and nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Certificate, CertificateFault, ServiceConfig, TlsConfig};
use crate::ipc::{CertificateId, Secret, WireCertificate};

/// By the paths of the certificate and the key.
#[derive(Debug, Clone, Default)]
pub struct CertificateStore {
    known: BTreeMap<(PathBuf, PathBuf), Arc<Certificate>>,
}

fn place(tls: &TlsConfig) -> (PathBuf, PathBuf) {
    (tls.certificate.clone(), tls.key.clone())
}

impl CertificateStore {
    /// What these services need, with what cannot be read of it.
    pub fn read<'a>(
        services: impl IntoIterator<Item = &'a ServiceConfig>,
    ) -> (CertificateStore, Vec<(&'a ServiceConfig, CertificateFault)>) {
        let mut certificates = CertificateStore::default();
        let mut faults = Vec::new();
        for service in services {
            let Some(tls) = &service.tls else { continue };
            if certificates.known.contains_key(&place(tls)) {
                continue;
            }
            match Certificate::read(tls) {
                Ok(certificate) => {
                    certificates.known.insert(place(tls), Arc::new(certificate));
                }
                Err(fault) => faults.push((service, fault)),
            }
        }
        (certificates, faults)
    }

    /// The one of a service.
    pub fn get(&self, service: &ServiceConfig) -> Option<&Arc<Certificate>> {
        self.known.get(&place(service.tls.as_ref()?))
    }

    /// Returns the certificate of this id in the form that a worker gets.
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

    /// Takes another's in, those of the same places in the stead of what is known.
    pub fn extend(&mut self, others: CertificateStore) {
        self.known.extend(others.known);
    }
}

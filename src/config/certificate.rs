//! Certificates and their keys on disk: they are read, and checked against each other and the
//! present time.
//!
//! Only the manager and `smoothserve check` read these files. A worker gets the certificate and the
//! key from the manager.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::SupportedCipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::site::{HostPattern, Site};
use super::tls::TlsConfig;
use crate::trust;

/// How long before its end a certificate is reported as one that should have been renewed.
pub const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The most bytes that are read of a certificate or key file, far more than a chain has.
const LONGEST: u64 = 256 << 10;

/// Why a certificate or its key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CertificateFault {
    /// True if the fault lies with the key rather than with the certificate.
    pub of_key: bool,
    /// What is wrong, and what to do about it.
    pub message: String,
}

impl CertificateFault {
    fn of_certificate(message: String) -> CertificateFault {
        CertificateFault {
            of_key: false,
            message,
        }
    }

    fn of_key(message: String) -> CertificateFault {
        CertificateFault {
            of_key: true,
            message,
        }
    }
}

/// A certificate that fits its key.
#[derive(Debug)]
pub struct Certificate {
    /// The digest of the chain and the key: any other content has another digest.
    pub digest: [u8; 32],
    /// The hosts that the certificate is for, in lower case, also `*.example`.
    pub hosts: Vec<String>,
    /// The chain, the server's own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key. Its `Debug` does not show it.
    pub key: PrivateKeyDer<'static>,
    addresses: Vec<IpAddr>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Certificate {
    /// Reads both files. A certificate that has expired, or is not valid yet, is read as well:
    /// where there is no other, it is better than none.
    pub fn read(tls: &TlsConfig) -> Result<Certificate, CertificateFault> {
        let chain = read_chain(&tls.certificate).map_err(CertificateFault::of_certificate)?;
        let key = read_key(&tls.key).map_err(CertificateFault::of_key)?;
        Certificate::new(tls, chain, key)
    }

    fn new(
        tls: &TlsConfig,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Certificate, CertificateFault> {
        let (certificate, key_path) = (tls.certificate.display(), tls.key.display());
        let leaf = Leaf::parse(&chain[0]).map_err(|error| {
            CertificateFault::of_certificate(format!("{certificate} holds no certificate: {error}"))
        })?;
        let provider = aws_lc_rs::default_provider();
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let message = format!("the key {key_path} is not that of {certificate}");
                return Err(CertificateFault::of_key(message));
            }
            Err(error) => {
                let message = format!("the key {key_path} cannot be used: {error}");
                return Err(CertificateFault::of_key(message));
            }
        }
        Ok(Certificate {
            digest: digest(&provider, &chain, key.secret_der()),
            hosts: leaf.hosts,
            chain,
            key,
            addresses: leaf.addresses,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
        })
    }

    /// Says why the certificate is not valid at this time. `None`: it is valid.
    pub fn invalidity(&self, now: SystemTime) -> Option<String> {
        let date = httpdate::fmt_http_date;
        if now < self.not_before {
            Some(format!("is not valid before {}", date(self.not_before)))
        } else if now > self.not_after {
            Some(format!("has expired: {}", date(self.not_after)))
        } else {
            None
        }
    }

    /// Returns the end of the certificate's validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Returns a warning if the certificate is not valid, or expires so soon that it should have
    /// been renewed by now.
    pub fn end_is_near(&self, now: SystemTime) -> Option<String> {
        match self.invalidity(now) {
            Some(invalid) => Some(invalid),
            None if self.not_after < now + EXPIRES_SOON => {
                let date = httpdate::fmt_http_date(self.not_after);
                Some(format!("expires soon: {date}"))
            }
            None => None,
        }
    }

    /// Lists remarks about a certificate that can be used: that it expires soon, or does not cover
    /// all hosts of a service.
    pub fn remarks(&self, sites: &[Site], now: SystemTime) -> Vec<String> {
        let mut remarks = Vec::from_iter(self.end_is_near(now));
        let mut uncovered: Vec<String> = sites
            .iter()
            .filter(|site| !self.covers(&site.host))
            .map(|site| Site {
                host: site.host.clone(),
                path: "/".to_owned(),
            })
            .map(|site| site.to_string())
            .collect();
        uncovered.dedup();
        if !uncovered.is_empty() {
            remarks.push(format!("is not for {}", uncovered.join(", ")));
        }
        remarks
    }

    /// Returns true if the certificate is for this host. A wildcard stands for one label, see RFC
    /// 9525, section 6.3.
    fn covers(&self, host: &HostPattern) -> bool {
        let has = |name: &str| self.hosts.iter().any(|own| own == name);
        match host {
            HostPattern::Any => true,
            HostPattern::Subdomain(parent) => has(&format!("*.{parent}")),
            HostPattern::Exact(name) => match name.trim_matches(['[', ']']).parse::<IpAddr>() {
                Ok(address) => self.addresses.contains(&address),
                Err(_) => {
                    let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
                    has(name) || wildcard.is_some_and(|wildcard| has(&wildcard))
                }
            },
        }
    }
}

/// The hosts and the time of validity in the server's own certificate, the first of a chain.
struct Leaf {
    hosts: Vec<String>,
    addresses: Vec<IpAddr>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Leaf {
    fn parse(certificate: &CertificateDer<'_>) -> Result<Leaf, String> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|error| error.to_string())?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let hosts = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.trim_end_matches('.').to_ascii_lowercase()),
            _ => None,
        });
        let addresses = names.iter().filter_map(|name| match name {
            GeneralName::IPAddress(bytes) => to_address(bytes),
            _ => None,
        });
        let validity = parsed.validity();
        Ok(Leaf {
            hosts: hosts.collect(),
            addresses: addresses.collect(),
            not_before: to_time(validity.not_before.timestamp()),
            not_after: to_time(validity.not_after.timestamp()),
        })
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    trust::read(path, LONGEST, None)
        .map_err(|fault| format!("{} cannot be read: {fault}", path.display()))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read_bounded(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| not_pem(path, &error))?;
    match chain.is_empty() {
        true => Err(format!("{} has no certificate in it", path.display())),
        false => Ok(chain),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let bytes = read_bounded(path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => format!(
            "{} has no private key in it that is not encrypted",
            path.display()
        ),
        error => not_pem(path, &error),
    })
}

fn not_pem(path: &Path, error: &pem::Error) -> String {
    // The error may hold a part of a key.
    let why = match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a section begins wrongly",
        pem::Error::Base64Decode(_) => "its Base64 is broken",
        _ => "it cannot be decoded",
    };
    format!("{} is not PEM: {why}", path.display())
}

/// Computes the digest of the chain and the key: everything that makes a difference to a client or
/// a worker.
fn digest(provider: &CryptoProvider, chain: &[CertificateDer<'_>], key: &[u8]) -> [u8; 32] {
    let mut suites = provider.cipher_suites.iter();
    let hash = suites.find_map(|suite| match suite {
        SupportedCipherSuite::Tls13(suite) => {
            Some(suite.common.hash_provider).filter(|hash| hash.output_len() == 32)
        }
        SupportedCipherSuite::Tls12(_) => None,
    });
    let hash = hash.expect("TLS 1.3 has a suite with SHA-256");
    let mut context = hash.start();
    for part in chain.iter().map(|part| part.as_ref()).chain([key]) {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

fn to_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Converts seconds since 1970. An earlier time becomes 1970, which has passed as well.
fn to_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

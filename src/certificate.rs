//! A certificate and its key, as they lie on disk: read, and compared with each other and with the time.
//!
//! Only the manager does this. A worker gets what is good.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::SupportedCipherSuite;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{Site, TlsConfig};
use crate::ipc::{CertificateId, Host, Secret, WireCertificate};

/// Far more than a chain or a key takes.
const LONGEST: u64 = 256 << 10;

/// How long before its end a certificate should have been renewed.
pub const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// What cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CertificateFault {
    /// It lies with the key rather than with the certificate.
    pub of_key: bool,
    /// What it is, and what to do about it.
    pub message: String,
}

/// A certificate that fits its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// What a worker gets.
    pub message: WireCertificate,
    addresses: Vec<IpAddr>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Certificate {
    /// Reads both files. Whether it is the time for it is not looked at: one that is over is better than none where there is
    /// no other.
    pub fn read(tls: &TlsConfig) -> Result<Certificate, CertificateFault> {
        let of_certificate = |message| CertificateFault {
            of_key: false,
            message,
        };
        let of_key = |message| CertificateFault {
            of_key: true,
            message,
        };
        let chain = read_chain(&tls.certificate).map_err(of_certificate)?;
        let key = read_key(&tls.key).map_err(of_key)?;
        Certificate::new(tls, chain, key)
    }

    fn new(
        tls: &TlsConfig,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Certificate, CertificateFault> {
        let fault = |of_key: bool, message: String| CertificateFault { of_key, message };
        let (certificate, key_path) = (tls.certificate.display(), tls.key.display());
        let mut result = Certificate::describe(&chain[0]).map_err(|error| {
            fault(
                false,
                format!("{certificate} holds no certificate: {error}"),
            )
        })?;
        let provider = aws_lc_rs::default_provider();
        match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider) {
            Ok(_) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                let message = format!("the key {key_path} is not that of {certificate}");
                return Err(fault(true, message));
            }
            Err(error) => {
                let message = format!("the key {key_path} cannot be used: {error}");
                return Err(fault(true, message));
            }
        }
        result.message.id = digest(&provider, &chain, key.secret_der());
        result.message.chain = chain.iter().map(|part| part.to_vec()).collect();
        result.message.key = Secret(key.secret_der().to_vec());
        Ok(result)
    }

    /// All but the bytes themselves.
    fn describe(own: &CertificateDer<'_>) -> Result<Certificate, String> {
        let (_, parsed) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
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
        Ok(Certificate {
            message: WireCertificate {
                id: CertificateId([0; 32]),
                names: hosts.collect(),
                chain: Vec::new(),
                key: Secret(Vec::new()),
            },
            addresses: addresses.collect(),
            not_before: to_time(validity.not_before.timestamp()),
            not_after: to_time(validity.not_after.timestamp()),
        })
    }

    /// Why it is not valid at this time, if so.
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

    /// When it is valid no more.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Says so if it should have been renewed by now.
    pub fn end_is_near(&self, now: SystemTime) -> Option<String> {
        match self.invalidity(now) {
            Some(invalid) => Some(invalid),
            None if self.not_after < now + SOON => {
                let date = httpdate::fmt_http_date(self.not_after);
                Some(format!("expires soon: {date}"))
            }
            None => None,
        }
    }

    /// What should be looked after, though it can be used: it will expire soon, or is not for all hosts of a service.
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

    /// RFC 9525, section 6.3: a wildcard stands for one label.
    fn covers(&self, host: &Host) -> bool {
        let has = |name: &str| self.message.names.iter().any(|own| own == name);
        match host {
            Host::Any => true,
            Host::Subdomain(parent) => has(&format!("*.{parent}")),
            Host::Exact(name) => match name.trim_matches(['[', ']']).parse::<IpAddr>() {
                Ok(address) => self.addresses.contains(&address),
                Err(_) => {
                    let wildcard = name.split_once('.').map(|(_, rest)| format!("*.{rest}"));
                    has(name) || wildcard.is_some_and(|wildcard| has(&wildcard))
                }
            },
        }
    }
}

/// Where the two lie, of what the configuration gives: a folder has both under the names that the ACME clients use.
pub fn paths(certificate: PathBuf, key: Option<PathBuf>) -> TlsConfig {
    match key {
        Some(key) => TlsConfig::new(certificate, key),
        None => TlsConfig::new(
            certificate.join("fullchain.pem"),
            certificate.join("privkey.pem"),
        ),
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| {
            if !file.metadata()?.is_file() {
                return Err(std::io::Error::other("it is no regular file"));
            }
            file.take(LONGEST + 1).read_to_end(&mut bytes)
        })
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    match bytes.len() as u64 > LONGEST {
        true => Err(format!("{shown} is longer than {LONGEST} bytes")),
        false => Ok(bytes),
    }
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

/// Of everything that a client or the worker could see a difference in.
fn digest(provider: &CryptoProvider, chain: &[CertificateDer<'_>], key: &[u8]) -> CertificateId {
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
    let mut id = [0; 32];
    id.copy_from_slice(context.finish().as_ref());
    CertificateId(id)
}

fn to_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// What lies before 1970 is as good as that.
fn to_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

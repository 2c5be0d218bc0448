//! The certificates of the listeners with TLS, compiled to what rustls needs for a handshake.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::ipc::{CertificateId, WireCertificate};

/// The protocols that a handshake offers (ALPN), the preferred one first.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// The certificates that the manager has sent and that are in use, and what all listeners with TLS
/// have in common.
pub(crate) struct ListenerCertificates {
    known: HashMap<CertificateId, Certificate>,
    /// Encrypts the session tickets of all listeners, threads and tables. The ticketer changes its
    /// keys by itself.
    tickets: Arc<dyn ProducesTickets>,
    provider: Arc<CryptoProvider>,
}

/// A certificate that the manager has sent, with its key, ready for handshakes.
struct Certificate {
    key: Arc<CertifiedKey>,
    /// The host names in the certificate, by which a listener chooses it.
    names: Vec<String>,
}

/// What the threads need in order to do the handshakes of a listener with TLS.
#[derive(Debug, Clone)]
pub(crate) struct ListenerTls {
    /// The certificates that `config` was made from.
    certificates: Vec<CertificateId>,
    /// What rustls needs for a handshake.
    pub(crate) config: Arc<ServerConfig>,
}

impl ListenerCertificates {
    /// Makes an empty set, with a ticket key of its own.
    pub(crate) fn new() -> Result<ListenerCertificates, rustls::Error> {
        Ok(ListenerCertificates {
            known: HashMap::new(),
            tickets: aws_lc_rs::Ticketer::new()?,
            provider: Arc::new(provider()),
        })
    }

    /// Adds a certificate. If there is already a certificate of the same id, that one stays.
    pub(crate) fn add(&mut self, certificate: WireCertificate) -> Result<(), rustls::Error> {
        if self.known.contains_key(&certificate.id) {
            return Ok(());
        }
        let chain = certificate.chain.into_iter().map(CertificateDer::from);
        let key = PrivateKeyDer::try_from(certificate.key.0)
            .map_err(|error| rustls::Error::General(error.to_owned()))?;
        let key = CertifiedKey::from_der(chain.collect(), key, &self.provider)?;
        let known = Certificate {
            key: Arc::new(key),
            names: certificate.names,
        };
        self.known.insert(certificate.id, known);
        Ok(())
    }

    /// Forgets all certificates but the named ones.
    pub(crate) fn keep(&mut self, named: &BTreeSet<CertificateId>) {
        self.known.retain(|id, _| named.contains(id));
    }

    /// Returns what a listener needs for handshakes with these certificates. The first certificate
    /// is the default, for names that no certificate has. If the listener had the same certificates
    /// `before`, the configuration stays the same. The error is the id of a certificate that was
    /// never received.
    pub(crate) fn listener(
        &self,
        certificates: Vec<CertificateId>,
        before: Option<&ListenerTls>,
    ) -> Result<ListenerTls, CertificateId> {
        if let Some(before) = before.filter(|before| before.certificates == certificates) {
            return Ok(before.clone());
        }
        let mut resolver = Resolver::default();
        for id in &certificates {
            resolver.add(self.known.get(id).ok_or(*id)?);
        }
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider has suites for both")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        config.ignore_client_order = true;
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        config.ticketer = self.tickets.clone();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(ListenerTls {
            certificates,
            config: Arc::new(config),
        })
    }
}

/// Returns the ciphers in the order in which smoothserve prefers them. The order of the client does
/// not count: all these ciphers are good enough, so the one that is fastest on the processor comes
/// first. Browsers prefer the same one, clients with OpenSSL do not.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let name = suite.suite().as_str().unwrap_or_default();
        !name.contains("AES_128_GCM")
    });
    provider
}

/// Finds the certificate for the name that a client asks for: one for the name itself, then one
/// with `*` in the place of its first label, then the default.
#[derive(Default)]
struct Resolver {
    exact: BTreeMap<String, Arc<CertifiedKey>>,
    wildcard: BTreeMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Resolver {
    fn add(&mut self, certificate: &Certificate) {
        for name in &certificate.names {
            let (names, name) = match name.strip_prefix("*.") {
                Some(parent) => (&mut self.wildcard, parent),
                None => (&mut self.exact, name.as_str()),
            };
            names
                .entry(name.to_owned())
                .or_insert_with(|| certificate.key.clone());
        }
        self.default.get_or_insert_with(|| certificate.key.clone());
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let parent = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(&name).or_else(parent)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = (self.exact.keys(), self.wildcard.keys());
        f.debug_tuple("Resolver").field(&names).finish()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = hello.server_name().and_then(|name| self.find(name));
        found.or(self.default.as_ref()).cloned()
    }
}

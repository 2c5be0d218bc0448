//! TLS facing the client.
//!
//! # Theory of operation
//! A [`Secure`] connection lies between a stream of plain bytes, which the rest of the worker sees, and the socket. Its
//! session is rustls's. One direction of the connection may have to move the other one's bytes (a closing alert, a key
//! update), so both use one session, which is never borrowed across an await.
//!
//! * What is sent is encrypted first and then written in as few system calls as possible. If the socket takes only a part,
//!   the sender goes on being told to wait: a send counts as done when its last encrypted byte is on its way, for nobody
//!   would come back for the rest.
//! * What the handshake leaves to be sent (the session tickets) goes along with the first response.
//! * An end without TLS's own closing alert is an error, so nobody can make a part pass for the whole. We send that alert
//!   whenever a connection ends regularly.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use tokio::time::timeout;

use super::buffer::Buffer;
use super::stream::Stream;
use crate::ipc::{CertificateId, WireCertificate};

/// How long a handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// The protocols that are offered, the one that is liked best first.
const PROTOCOLS: [&[u8]; 2] = [HTTP2, b"http/1.1"];

const HTTP2: &[u8] = b"h2";

/// So much is encrypted at a time, which is what a large piece of a buffer holds, and what goes around it.
const MOST_ENCRYPTED: usize = 144 << 10;

/// All certificates that the manager has sent, and what is common to all listeners.
pub(crate) struct Certificates {
    known: HashMap<CertificateId, Certificate>,
    /// Shared by all listeners and threads, and kept over all tables. It changes its keys by itself.
    tickets: Arc<dyn ProducesTickets>,
    provider: Arc<CryptoProvider>,
}

struct Certificate {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
}

/// What the threads need to know of a listener with TLS.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// Those that it was made of.
    certificates: Vec<CertificateId>,
    pub(crate) config: Arc<ServerConfig>,
}

impl Certificates {
    pub(crate) fn new() -> Result<Certificates, rustls::Error> {
        Ok(Certificates {
            known: HashMap::new(),
            tickets: aws_lc_rs::Ticketer::new()?,
            provider: Arc::new(provider()),
        })
    }

    /// Takes a certificate in. One that is here already stays.
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

    /// Those that are not named any more are forgotten.
    pub(crate) fn keep(&mut self, named: &BTreeSet<CertificateId>) {
        self.known.retain(|id, _| named.contains(id));
    }

    /// What a listener needs for these certificates, the first of which is for names that none of them has; what it had
    /// before, if it had them. `Err`: the one that was never received.
    pub(crate) fn listener(
        &self,
        certificates: Vec<CertificateId>,
        before: Option<&Tls>,
    ) -> Result<Tls, CertificateId> {
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
        Ok(Tls {
            certificates,
            config: Arc::new(config),
        })
    }
}

/// What is liked best comes first, whatever the client likes: of ciphers that all are good enough, the one that processors are
/// best at. Browsers have the same one first, but OpenSSL's clients do not.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let name = suite.suite().as_str().unwrap_or_default();
        !name.contains("AES_128_GCM")
    });
    provider
}

/// Finds the certificate for a name: the name itself, then `*` in the place of its first label, then the default.
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

/// A connection with TLS.
pub(crate) struct Secure {
    socket: Stream,
    session: RefCell<ServerConnection>,
    /// Decrypted bytes may wait in the session.
    decrypted: Cell<bool>,
    /// Bytes of the present send that are encrypted, while not all of them are on their way.
    sending: Cell<usize>,
    /// It must not look like a regular end.
    aborted: Cell<bool>,
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Secure").field(&self.socket).finish()
    }
}

/// Does the handshake. What has come already is in `received`.
pub(crate) async fn accept(
    socket: Stream,
    received: &mut Buffer,
    config: Arc<ServerConfig>,
) -> io::Result<Stream> {
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    session.set_buffer_limit(Some(MOST_ENCRYPTED));
    let secure = Secure {
        socket,
        session: RefCell::new(session),
        decrypted: Cell::new(false),
        sending: Cell::new(0),
        aborted: Cell::new(false),
    };
    while !received.is_empty() {
        let mut session = secure.session.borrow_mut();
        let count = session.read_tls(&mut received.unread())?;
        received.consume(count);
        secure.decrypt(&mut session)?;
    }
    match timeout(HANDSHAKE_LIMIT, poll_fn(|cx| secure.poll_handshake(cx))).await {
        Ok(result) => result?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    Ok(Stream::Secure(Box::new(secure)))
}

impl Secure {
    pub(crate) fn socket(&self) -> &Stream {
        &self.socket
    }

    pub(crate) fn agreed_on_http2(&self) -> bool {
        self.session.borrow().alpn_protocol() == Some(HTTP2)
    }

    fn poll_handshake(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.session.borrow_mut();
        while session.is_handshaking() {
            if session.wants_write() {
                std::task::ready!(self.poll_flush(&mut session, cx))?;
            } else {
                match std::task::ready!(self.poll_more(&mut session, cx))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    _ => continue,
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether [`poll_receive`](Secure::poll_receive) may find something.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.decrypted.get() {
            return Poll::Ready(Ok(()));
        }
        self.send_rest(cx)?;
        self.socket.poll_read_ready(cx)
    }

    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut session = self.session.borrow_mut();
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            self.decrypted.set(false);
            match self.poll_more(&mut session, cx) {
                // The end, whose kind the reader knows.
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Sends what is left of the handshake, or answers a key update: the client may be waiting for it before it sends what
    /// is waited for here. If the socket does not take it, the next send comes to it.
    fn send_rest(&self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut session = self.session.borrow_mut();
        if session.wants_write()
            && self.sending.get() == 0
            && let Poll::Ready(result) = self.poll_flush(&mut session, cx)
        {
            result?;
        }
        Ok(())
    }

    /// Encrypts and sends what it can. After `Pending` it has to be called again with the same bytes.
    pub(crate) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut session = self.session.borrow_mut();
        if self.sending.get() == 0 {
            self.sending.set(session.writer().write_vectored(slices)?);
        }
        std::task::ready!(self.poll_flush(&mut session, cx))?;
        Poll::Ready(Ok(self.sending.take()))
    }

    /// Reads from the socket, and decrypts.
    fn poll_more(
        &self,
        session: &mut ServerConnection,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut socket = Waiting(&self.socket, cx);
        let count = match session.read_tls(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            result => result?,
        };
        Poll::Ready(self.decrypt(session).map(|()| count))
    }

    /// Decrypts what was read.
    fn decrypt(&self, session: &mut ServerConnection) -> io::Result<()> {
        match session.process_new_packets() {
            Ok(state) => self.decrypted.set(state.plaintext_bytes_to_read() > 0),
            Err(error) => {
                // The alert, which says why.
                let _ = session.write_tls(&mut AtOnce(&self.socket));
                self.aborted.set(true);
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(())
    }

    /// Writes all that is encrypted.
    fn poll_flush(
        &self,
        session: &mut ServerConnection,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while session.wants_write() {
            match session.write_tls(&mut Waiting(&self.socket, cx)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn is_quiet(&self) -> bool {
        !self.decrypted.get() && self.socket.is_quiet()
    }

    /// Tells the client that nothing more will be sent, if the socket takes that at once.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.say_end();
        self.socket.finish()
    }

    pub(crate) fn reset_on_close(&self) -> io::Result<()> {
        self.aborted.set(true);
        self.socket.reset_on_close()
    }

    fn say_end(&self) {
        if self.aborted.replace(true) {
            return;
        }
        let mut session = self.session.borrow_mut();
        session.send_close_notify();
        while session.wants_write() {
            if !matches!(session.write_tls(&mut AtOnce(&self.socket)), Ok(1..)) {
                return;
            }
        }
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.say_end();
    }
}

/// The socket as rustls sees it within a task, which is woken when it can go on.
struct Waiting<'a, 'b, 'c>(&'a Stream, &'b mut Context<'c>);

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Waiting<'_, '_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        or_would_block(self.0.poll_receive(self.1, buffer))
    }
}

impl Write for Waiting<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(self.0.poll_send(self.1, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The socket where nothing is to be waited for.
struct AtOnce<'a>(&'a Stream);

impl Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(&[IoSlice::new(bytes)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

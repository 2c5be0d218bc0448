//! Clients that open a TLS connection for each request, with full or with resumed handshakes.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, Stream};

use crate::configs::HOST;
use crate::load::Outcome;
use crate::process::stay_on;

/// The number of clients that run at the same time.
const CLIENTS: usize = 8;

/// Runs the clients on these cores against a port that presents this certificate.
pub fn run(
    cores: &'static [usize],
    port: u16,
    time: Duration,
    certificate: &Path,
    resumed: bool,
) -> anyhow::Result<Outcome> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&fs::read(certificate)?)?)?;
    let begin = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let roots = roots.clone();
            thread::spawn(move || -> anyhow::Result<Histogram<u64>> {
                stay_on(cores)?;
                let mut config = ClientConfig::builder()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                if !resumed {
                    config.resumption = Resumption::disabled();
                }
                let config = Arc::new(config);
                // The first handshake of a client cannot be a resumed one.
                ask(port, &config)?;
                let mut latencies = Histogram::new(3)?;
                while begin.elapsed() < time {
                    let start = Instant::now();
                    let kind = ask(port, &config)?;
                    ensure!((kind == HandshakeKind::Resumed) == resumed, "{kind:?}");
                    latencies.record(u64::try_from(start.elapsed().as_micros())?)?;
                }
                Ok(latencies)
            })
        })
        .collect();
    let mut latencies = Histogram::<u64>::new(3)?;
    for client in clients {
        latencies.add(client.join().expect("the clients do not panic")?)?;
    }
    Ok(Outcome {
        // The first requests are included, because they cost CPU time, too.
        requests: latencies.len() + CLIENTS as u64,
        seconds: begin.elapsed().as_secs_f64(),
        p50: latencies.value_at_quantile(0.5) as f64,
        p99: latencies.value_at_quantile(0.99) as f64,
        errors: 0,
    })
}

/// Sends one request on a connection of its own, and returns the kind of its handshake.
fn ask(port: u16, config: &Arc<ClientConfig>) -> anyhow::Result<HandshakeKind> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    let mut connection = ClientConnection::new(config.clone(), ServerName::try_from(HOST)?)?;
    let mut stream = Stream::new(&mut connection, &mut socket);
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"\r\n\r\nxxxxxx"),
        "a strange answer: {}",
        answer.escape_ascii()
    );
    connection
        .handshake_kind()
        .context("no handshake took place")
}

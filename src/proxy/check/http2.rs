//! What must hold of a connection with HTTP/2, whatever its client sends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use crate::ipc::ListenerId;
use crate::proxy::connection::connection::serve;
use crate::proxy::exchange::client::{Client, Peer};
use crate::proxy::net::socket::Socket;
use crate::proxy::shared::budget::Budget;
use crate::proxy::shared::router::Router;
use crate::proxy::shared::threads::{Reporter, Threads};
use crate::proxy::view::drain::Drain;
use crate::proxy::view::listener::{ListenerView, Routes};
use crate::proxy::view::view::View;

/// The preface of a client, and its SETTINGS without any setting.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How long a connection may take whose client has sent everything. It is work of microseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// How many bytes the proxy may send, in all, for each byte that it receives: the shortest request
/// is a HEADERS frame of a few bytes, and gets an error page.
const MOST_SENT: usize = 64;

/// The longest payload of a frame, unless the client has allowed more (RFC 9113, section 4.2).
const LONGEST_PAYLOAD: usize = 16 << 10;

/// Sends these bytes behind the beginning of a connection, and nothing more. Panics if the
/// connection does not end then, or if what comes back is no sequence of frames.
pub fn check(input: &[u8]) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let mut client = TcpStream::connect(address).expect("somebody listens");
    let (server, peer) = listener.accept().expect("a client has connected");
    server.set_nonblocking(true).expect("it is a socket");
    client
        .write_all(&[BEGIN, input].concat())
        .expect("the kernel has room for it");
    client.shutdown(Shutdown::Write).expect("it is connected");

    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .expect("there are resources for it");
    let sent = runtime.block_on(async {
        let (reports, _) = mpsc::unbounded_channel();
        let budget = Budget::new(None, 1);
        let threads = Threads::new(vec![mpsc::unbounded_channel().0], budget);
        let view = View::new(threads.into(), Reporter::new(0, reports));
        let view = Rc::new(view);
        let routes = Routes {
            tls: None,
            router: Arc::new(Router::default()),
            services: [].into(),
            proxy_protocol: false,
            passing: false,
        };
        let listener = Rc::new(ListenerView::new(ListenerId(1), address, routes));
        let peer = Rc::new(Peer::new(peer, listener, view, Rc::new(Drain::default())));
        let serving = serve(Box::new(Client::new(Socket::accepted(server).into(), peer)));
        // What is sent fits into the kernel's buffers, so it can be read afterwards.
        tokio::time::timeout(LIMIT, serving)
            .await
            .expect("the connection ends with its client");
        let mut sent = Vec::new();
        // A reset ends the connection as well as a regular end.
        let _ = client.read_to_end(&mut sent);
        sent
    });
    assert!(sent.len() <= MOST_SENT * (BEGIN.len() + input.len()));
    check_frames(&sent);
}

fn check_frames(mut sent: &[u8]) {
    while let Some((head, rest)) = sent.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        assert!(length <= LONGEST_PAYLOAD, "{length}");
        assert!(head[3] <= 9, "frame type {}", head[3]);
        match rest.split_at_checked(length) {
            Some((_, rest)) => sent = rest,
            None => return,
        }
    }
}

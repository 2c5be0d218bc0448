//! Placeholder of the worker's shell for the HTTP part.

use std::net::SocketAddr;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::listener::Listener;
use super::thread::Thread;

/// Serves one client connection to its end.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    listener: Rc<Listener>,
    thread: Rc<Thread>,
) {
    let _ = (stream.readable().await, peer, listener, thread);
}

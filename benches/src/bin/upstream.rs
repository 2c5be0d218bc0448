//! The service behind the proxies: it answers as cheaply as it can, so that the proxies are
//! measured and not the service.
//!
//! It listens on `PORT` of 127.0.0.1 or on the path `SOCKET`. `GET /` is answered with a few bytes,
//! `GET /N` with N bytes; a `POST` with a `Content-Length` is read to its end; `/echo` switches the
//! protocol and then echoes all bytes. The service waits for writability only when it must write:
//! otherwise it would be woken whenever a proxy reads from a unix socket.

use std::collections::HashMap;
use std::env;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use anyhow::Context;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::{Errno, read};
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};

/// The number of the listener among the events; connections are numbered from 1.
const LISTENER: u64 = 0;

/// The largest body of an answer, in bytes.
const LONGEST: usize = 100 << 20;

fn main() -> anyhow::Result<()> {
    let listener = listen()?;
    // Each answer is made when it is first requested, so that starting costs next to nothing.
    let mut answers = HashMap::new();
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut connections = HashMap::new();
    let mut newest = LISTENER;
    let mut events = Vec::with_capacity(256);
    loop {
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let number = event.data.u64();
            if number == LISTENER {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let Ok(socket) = accept_with(&listener, flags) else {
                    continue;
                };
                newest += 1;
                epoll::add(&epoll, &socket, EventData::new_u64(newest), EventFlags::IN)?;
                connections.insert(newest, Connection::new(socket));
            } else if let Some(connection) = connections.get_mut(&number) {
                match connection.go_on(&mut answers) {
                    Some(wanted) if wanted == connection.wanted => {}
                    Some(wanted) => {
                        connection.wanted = wanted;
                        epoll::modify(
                            &epoll,
                            &connection.socket,
                            EventData::new_u64(number),
                            wanted,
                        )?;
                    }
                    None => drop(connections.remove(&number)),
                }
            }
        }
    }
}

fn listen() -> anyhow::Result<OwnedFd> {
    if let Ok(path) = env::var("SOCKET") {
        return Ok(UnixListener::bind(path)?.into());
    }
    let port: u16 = env::var("PORT")
        .context("neither PORT nor SOCKET is set")?
        .parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    // Accepted connections inherit this option.
    set_tcp_nodelay(&listener, true)?;
    Ok(listener.into())
}

fn answer(length: usize) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nServer: upstream\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    answer.resize(answer.len() + length, b'x');
    answer
}

struct Connection {
    socket: OwnedFd,
    /// The events to wait for.
    wanted: EventFlags,
    received: Vec<u8>,
    /// The bytes of the request body that are still to come, and the length of the answer to it.
    body: Option<(usize, usize)>,
    /// The length of the answer being sent, and the bytes of it already sent.
    sending: Option<(usize, usize)>,
    echoes: bool,
}

impl Connection {
    fn new(socket: OwnedFd) -> Connection {
        Connection {
            socket,
            wanted: EventFlags::IN,
            received: Vec::with_capacity(16 << 10),
            body: None,
            sending: None,
            echoes: false,
        }
    }

    /// Does what can be done without waiting, and returns the events to wait for. `None` ends the
    /// connection: the client has closed it, or has sent something that this program does not know.
    fn go_on(&mut self, answers: &mut HashMap<usize, Vec<u8>>) -> Option<EventFlags> {
        if self.sending.is_none() {
            match read(&self.socket, spare_capacity(&mut self.received)) {
                Ok(0) => return None,
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(_) => return None,
            }
        }
        loop {
            if self.echoes {
                return self.echo();
            }
            if let Some((length, sent)) = self.sending {
                let answer = answers.entry(length).or_insert_with(|| answer(length));
                let rest = &answer[sent..];
                match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                    Ok(count) if count == rest.len() => self.sending = None,
                    Ok(count) => self.sending = Some((length, sent + count)),
                    Err(Errno::AGAIN) => return Some(EventFlags::OUT),
                    Err(_) => return None,
                }
            } else if let Some((left, length)) = self.body {
                let taken = left.min(self.received.len());
                self.received.drain(..taken);
                self.body = Some((left - taken, length));
                if taken < left {
                    return Some(EventFlags::IN);
                }
                (self.body, self.sending) = (None, Some((length, 0)));
            } else {
                let mut starts = self.received.windows(4);
                let Some(end) = starts.position(|four| four == b"\r\n\r\n") else {
                    let has_room = self.received.len() < self.received.capacity();
                    return has_room.then_some(EventFlags::IN);
                };
                if self.received.starts_with(b"GET /echo ") {
                    self.received.splice(..end + 4, SWITCHED.iter().copied());
                    self.echoes = true;
                    continue;
                }
                let (length, body) = understand(&self.received[..end])?;
                self.received.drain(..end + 4);
                self.body = Some((body, length));
            }
        }
    }

    /// Sends back what was received.
    fn echo(&mut self) -> Option<EventFlags> {
        if self.received.is_empty() {
            return Some(EventFlags::IN);
        }
        match send(&self.socket, &self.received, SendFlags::NOSIGNAL) {
            Ok(count) => {
                self.received.drain(..count);
                self.echo()
            }
            Err(Errno::AGAIN) => Some(EventFlags::OUT),
            Err(_) => None,
        }
    }
}

/// The response that WebSocket clients accept.
const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Returns the length of the answer that a head asks for, and the length of its body.
fn understand(head: &[u8]) -> Option<(usize, usize)> {
    let head = std::str::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?.strip_prefix('/')?;
    let length = match path {
        "" => 6,
        path => path.parse().ok().filter(|&length| length <= LONGEST)?,
    };
    let body = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse().ok())?
    });
    Some((length, body.unwrap_or_default()))
}

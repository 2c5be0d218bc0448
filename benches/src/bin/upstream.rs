//! The service behind the proxies: answers as cheaply as it can, so that what is measured is the proxy.
//!
//! Listens on `PORT` of 127.0.0.1 or on the path `SOCKET`. `GET /` gives a few bytes, `GET /N` gives N bytes; a `POST`
//! with a `Content-Length` is read to its end.

use std::collections::HashMap;
use std::env;
use std::rc::Rc;

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    runtime.block_on(tasks.run_until(serve()))
}

async fn serve() -> anyhow::Result<()> {
    let answers = Rc::new(
        [0, 6, 102_400, 10_485_760]
            .map(|length| (length, answer(length)))
            .into_iter()
            .collect::<HashMap<_, _>>(),
    );
    if let Ok(path) = env::var("SOCKET") {
        let listener = UnixListener::bind(path)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(connection(stream, answers.clone()));
        }
    }
    let port: u16 = env::var("PORT")
        .context("neither PORT nor SOCKET")?
        .parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(connection(stream, answers.clone()));
    }
}

fn answer(length: usize) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nServer: upstream\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
    );
    answer.extend(std::iter::repeat_n('x', length));
    answer.into_bytes()
}

/// Serves until the client closes, or sends something that this program does not know.
async fn connection(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: Rc<HashMap<usize, Vec<u8>>>,
) -> Option<()> {
    let mut received = Vec::with_capacity(16 << 10);
    loop {
        let head = loop {
            if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut received).await.ok()? == 0 {
                return None;
            }
        };
        let (path, body) = understand(&received[..head])?;
        let mut left = (head + body).saturating_sub(received.len());
        received.drain(..(head + body).min(received.len()));
        while left > 0 {
            let mut piece = [0; 16 << 10];
            let most = left.min(piece.len());
            left -= match stream.read(&mut piece[..most]).await.ok()? {
                0 => return None,
                count => count,
            };
        }
        stream.write_all(answers.get(&path)?).await.ok()?;
    }
}

/// The length that is asked for, and that of the body.
fn understand(head: &[u8]) -> Option<(usize, usize)> {
    let head = std::str::from_utf8(head).ok()?;
    let path = head.split(' ').nth(1)?.strip_prefix('/')?;
    let length = match path {
        "" => 6,
        path => path.parse().ok()?,
    };
    let body = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.eq_ignore_ascii_case("content-length");
        is_it.then(|| value.trim().parse().ok())?
    });
    Some((length, body.unwrap_or_default()))
}

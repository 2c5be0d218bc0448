//! A WebSocket client and a service that nobody here wrote: Python's `websockets`.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::PATIENCE;

/// What runs both.
pub const PYTHON: &str = "/usr/bin/python3";

/// Sends everything back. On SIGTERM it says goodbye by close code 1001, unless it is to be stubborn.
pub const SERVICE: &str = r#"
import asyncio, http, os, signal, websockets

async def echo(socket):
    async for message in socket:
        await socket.send(message)

async def plain(path, headers):
    if path == "/plain":
        return http.HTTPStatus.OK, [], b"plain"

async def main():
    stop = asyncio.Event()
    stubborn = "STUBBORN" in os.environ
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, (lambda: None) if stubborn else stop.set)
    port = int(os.environ["PORT"])
    async with websockets.serve(echo, "127.0.0.1", port, max_size=None, process_request=plain):
        await stop.wait()

asyncio.run(main())
"#;

/// Opens 20 tunnels, tries a large message and a ping in each, and then talks until it is told goodbye. Its lines are
/// `open`, and in the end all the close codes that it was told.
const CLIENT: &str = r#"
import asyncio, sys, websockets

port = int(sys.argv[1])
tunnels = 20
left = tunnels

async def talk():
    global left
    url = "ws://shop.example/talk"
    large = bytes(range(256)) * 4096
    async with websockets.connect(url, host="127.0.0.1", port=port, max_size=None) as socket:
        await socket.send(large)
        assert await socket.recv() == large
        await (await socket.ping())
        left -= 1
        if left == 0:
            print("open", flush=True)
        number = 0
        try:
            while True:
                await socket.send(str(number))
                assert await socket.recv() == str(number)
                number += 1
                await asyncio.sleep(0.01)
        except websockets.ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006

async def main():
    codes = await asyncio.gather(*(talk() for _ in range(tunnels)))
    print(sorted(set(codes)), len(codes), flush=True)

asyncio.run(main())
"#;

/// Tunnels in which somebody talks.
pub struct Talk {
    _client: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    /// 20 tunnels, all open.
    pub async fn start(port: u16) -> Talk {
        let mut client = Command::new(PYTHON)
            .args(["-c", CLIENT, &port.to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python3");
        let lines = BufReader::new(client.stdout.take().expect("it is piped")).lines();
        let mut talk = Talk {
            _client: client,
            lines,
        };
        assert_eq!(talk.next().await, "open");
        talk
    }

    /// The next line that the client says.
    pub async fn next(&mut self) -> String {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.expect("it goes on").expect("it can be read");
        line.expect("the client goes on")
    }
}

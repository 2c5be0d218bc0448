//! WebSockets of a client and a service that nobody here wrote, through everything that replaces instances.

use std::path::Path;
use std::process::Stdio;

use rustix::process::Signal;
use smoothserve_kit::{Home, Smoothserve, client, free_port, local, programs, write};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const PYTHON: &str = "/usr/bin/python3";

/// Sends everything back. On SIGTERM it says goodbye by close code 1001, unless it is to be stubborn.
const SERVICE: &str = r#"
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

struct Talk {
    _client: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    /// 20 tunnels, all open.
    async fn start(port: u16) -> Talk {
        let mut client = Command::new(PYTHON)
            .args(["-c", CLIENT, &port.to_string()])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap()).lines();
        let mut talk = Talk {
            _client: client,
            lines,
        };
        assert_eq!(talk.next().await, "open");
        talk
    }

    async fn next(&mut self) -> String {
        let line = timeout(smoothserve_kit::PATIENCE, self.lines.next_line()).await;
        let line = line.expect("it goes on").unwrap();
        line.expect("the client goes on")
    }
}

async fn serve(lines: &str) -> (Smoothserve, u16) {
    assert!(Path::new(PYTHON).exists(), "this test needs {PYTHON}");
    let home = Home::new();
    let port = free_port();
    let script = home.path().join("echo.py");
    write(&script, SERVICE);
    home.write_service(
        "shop",
        &format!(
            "name: shop\nserver_name: shop.example\nport: {port}\nexecutable_path: {PYTHON}\nargs: [{script:?}]\n{lines}"
        ),
    );
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    (server, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tunnel_gets_the_goodbye_of_its_instance() {
    let (mut server, port) = serve("instance_count: 2\n").await;
    let mut talk = Talk::start(port).await;
    server
        .until("all tunnels are counted", |status| {
            let instances = &status.services["shop"].instances;
            instances
                .iter()
                .map(|instance| instance.tunnels)
                .sum::<u64>()
                == 20
        })
        .await;
    let ordinary = tokio::spawn(async move {
        loop {
            let response = client::get(local(port), "shop.example", "/plain").await;
            assert_eq!(response.expect("no request is lost").text(), "plain");
        }
    });
    server.ok(&["restart", "shop"]).await;
    assert_eq!(talk.next().await, "[1001] 20");
    assert!(!ordinary.is_finished(), "{:?}", ordinary.await);
    ordinary.abort();

    // New ones go to the new instances, and the end of smoothserve is no other end for them.
    let mut talk = Talk::start(port).await;
    server.signal(Signal::TERM);
    assert_eq!(talk.next().await, "[1001] 20");
    assert!(server.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnels_that_their_instance_does_not_end_are_cut_off_in_the_end() {
    let lines = "environment: { STUBBORN: 1 }\ntunnel_drain_timeout: 1s\nstop_timeout: 1s\n";
    let (server, port) = serve(lines).await;
    let mut talk = Talk::start(port).await;
    server.ok(&["restart", "shop"]).await;
    assert_eq!(talk.next().await, "[1006] 20");
    server.stop().await;
}

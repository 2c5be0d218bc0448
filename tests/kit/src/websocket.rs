//! A WebSocket client and a WebSocket service on the `websockets` library of Python, an
//! implementation that is independent of smoothserve.

use crate::script::Script;

/// A service that echoes every message. On SIGTERM it closes its connections with code 1001, unless
/// its environment has `STUBBORN`.
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

/// A client that opens 20 tunnels, tries a large message and a ping in each, and then exchanges
/// messages until the service closes them. It prints `open`, and at the end all close codes.
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

/// Opens 20 tunnels to this port, and returns their client when all are open.
pub async fn talk(port: u16) -> Script {
    let mut talk = Script::python(CLIENT, &[&port.to_string()]);
    assert_eq!(talk.next().await, "open");
    talk
}

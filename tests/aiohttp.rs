//! aiohttp as client and as service: keep-alive, streamed bodies, and a service that closes its
//! idle connections whenever it likes.

use smoothserve_kit::script::Script;
use smoothserve_kit::{Home, Smoothserve, free_port, programs};

/// An aiohttp service that echoes request bodies piece by piece. On SIGTERM aiohttp itself decides
/// what becomes of its connections.
const SERVICE: &str = r#"
import os
from aiohttp import web

async def echo(request):
    response = web.StreamResponse()
    await response.prepare(request)
    async for piece in request.content.iter_any():
        await response.write(piece)
    await response.write_eof()
    return response

async def packed(request):
    response = web.json_response({"host": request.host, "scheme": request.headers["X-Forwarded-Proto"], "fill": "x" * 5000})
    response.enable_compression()
    return response

app = web.Application(client_max_size=0)
app.add_routes([web.post("/echo", echo), web.get("/packed", packed)])
web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), print=None)
"#;

/// Eight concurrent aiohttp clients. They send bodies in pieces and whole until standard input
/// ends, check every response, and print whether there were more than the first 20.
const CLIENT: &str = r#"
import aiohttp, asyncio, random, sys

url = "http://127.0.0.1:" + sys.argv[1]
done = asyncio.Event()
served = 0

async def pieces(body):
    for start in range(0, len(body), 5000):
        yield body[start:start + 5000]

async def client(session, number):
    global served
    dice = random.Random(number)
    while not done.is_set():
        body = dice.randbytes(dice.choice([1, 1000, 70000]))
        data = pieces(body) if dice.random() < 0.5 else body
        async with session.post(url + "/echo", data=data) as response:
            assert response.status == 200, response
            assert await response.read() == body
        async with session.get(url + "/packed") as response:
            answer = await response.json()
            assert answer == {"host": "shop.example", "scheme": "http", "fill": "x" * 5000}, answer
        served += 1
        if served == 20:
            print("begun", flush=True)

async def main():
    reader = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    reader.add_done_callback(lambda _: done.set())
    async with aiohttp.ClientSession(headers={"Host": "shop.example"}) as session:
        await asyncio.gather(*(client(session, number) for number in range(8)))
    print("all of", served > 20, flush=True)

asyncio.run(main())
"#;

#[tokio::test]
async fn nothing_is_lost_between_clients_and_services_of_aiohttp() {
    let home = Home::new();
    let port = free_port();
    home.add_python("shop", port, SERVICE, "instance_count: 2\n");
    let server = Smoothserve::start(programs!(), home).await;
    server.running("shop").await;
    let mut client = Script::python(CLIENT, &[&port.to_string()]);
    assert_eq!(client.next().await, "begun");
    for _ in 0..2 {
        server.ok(&["restart", "shop"]).await;
    }
    assert_eq!(client.finish().await, "all of True");
    server.stop().await;
}

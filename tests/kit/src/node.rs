//! Load by Node, over HTTP/2 and over TLS, which proves that no request of an independent client is
//! lost.

use std::path::Path;

use crate::script::Script;

/// Keeps four connections with four requests at a time on each, and compares each body with its
/// echo. After a GOAWAY, open requests go on, and new ones go over a new connection; with `end` no
/// new ones are sent.
const LOAD: &str = r#"
const http2 = require('http2'), https = require('https'), net = require('net'), tls = require('tls');
const crypto = require('crypto'), fs = require('fs');
const [mode, port, authority, end] = process.argv.slice(1);
const host = 'shop.example';
const secured = { host: '127.0.0.1', port, servername: host, ca: fs.readFileSync(authority) };
let served = 0, connections = 0, begun = false, done = false;

function fail(why) {
    console.log('failed: ' + (why.stack || why));
    process.exit(1);
}

function connect(lane) {
    const dial = () => mode === 'h2' ? tls.connect({ ...secured, ALPNProtocols: ['h2'] }) : net.connect(port, '127.0.0.1');
    const session = http2.connect(`${mode === 'h2' ? 'https' : 'http'}://${host}:${port}`, { createConnection: dial });
    session.on('goaway', () => { lane.leaves = true; });
    session.on('error', fail);
    connections += 1;
    return session;
}

function begin(lane, length) {
    const head = { ':method': 'POST', ':path': '/echo', 'content-length': length };
    if (!lane.session || lane.session.closed || lane.session.destroyed) lane.session = connect(lane);
    return lane.session.request(head);
}

const agent = new https.Agent({ ...secured, keepAlive: true, maxSockets: 16 });

function exchange(lane, body) {
    return new Promise((answered) => {
        const chunks = [];
        const whole = () => {
            if (!Buffer.concat(chunks).equals(body)) fail('other bytes');
            served += 1;
            answered();
        };
        if (mode === 'https') {
            const headers = { host, 'content-length': body.length };
            const request = https.request({ agent, method: 'POST', path: '/echo', headers }, (response) => {
                if (response.statusCode !== 200) fail('status ' + response.statusCode);
                response.on('data', (chunk) => chunks.push(chunk)).on('end', whole).on('error', fail);
            });
            request.on('error', fail).end(body);
        } else {
            const request = begin(lane, body.length);
            // Node itself refuses what it has not sent yet when the GOAWAY comes.
            const refused = (error) => {
                if (!lane.leaves || request.rstCode !== http2.constants.NGHTTP2_REFUSED_STREAM) fail(error);
                answered(end ? undefined : exchange(lane, body));
            };
            request.on('response', (head) => { if (head[':status'] !== 200) fail('status ' + head[':status']); });
            request.on('data', (chunk) => chunks.push(chunk)).on('end', whole).on('error', refused);
            request.end(body);
        }
    });
}

async function run(lane, number) {
    while (!done && !(end && lane.leaves)) {
        number = (number * 7919) % 65521;
        await exchange(lane, crypto.randomBytes(1 + number));
        if (served >= 100 && !begun) { begun = true; console.log('begun'); }
    }
}

process.stdin.on('end', () => { done = true; }).resume();
const lanes = [...Array(4)].map(() => ({}));
Promise.all(lanes.flatMap((lane, l) => [...Array(4)].map((_, s) => run(lane, 1 + 4 * l + s)))).then(() => {
    console.log(`served ${served > 100} ${connections > 4}`);
    process.exit(0);
});
"#;

/// Puts load on `shop.example` at this port, and returns when 100 requests were served. The mode is
/// `h2`, `https` (HTTP/1.1 over TLS) or `h2c`; `authority` is the file of the trusted certificates.
pub async fn load(mode: &str, port: u16, authority: &Path, more: &[&str]) -> Script {
    let port = port.to_string();
    let authority = authority.to_str().expect("a path of a test");
    let mut load = Script::node(LOAD, &[&[mode, &port, authority], more].concat());
    assert_eq!(load.next().await, "begun");
    load
}

/// Ends the load, and checks that no request was lost.
pub async fn nothing_is_lost(mut load: Script) {
    let last = load.finish().await;
    assert!(last.starts_with("served true"), "{last}");
}

//! gRPC with a client and a service of the official library: HTTP/2 on both sides, trailers, and
//! streams in both directions.

use smoothserve_kit::script::Script;
use smoothserve_kit::{Home, Smoothserve, free_port, programs};

/// A gRPC service without generated code: its messages are bytes.
const SERVICE: &str = r#"
import concurrent.futures, grpc, os, signal, threading

def echo(request, context):
    context.set_trailing_metadata((("x-length", str(len(request))),))
    return request

def talk(requests, context):
    for request in requests:
        yield request + b" from " + os.environ["INSTANCE"].encode()

def refuse(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")

def count(request, context):
    for number in range(int(request)):
        yield str(number).encode() * 1000

methods = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    "Count": grpc.unary_stream_rpc_method_handler(count),
}
options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
server = grpc.server(concurrent.futures.ThreadPoolExecutor(32), options=options)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Shop", methods),))
server.add_insecure_port("127.0.0.1:" + os.environ["PORT"])
server.start()
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
stop.wait()
server.stop(30).wait()
"#;

/// A gRPC client that makes every kind of call once, and then unary calls and a conversation until
/// it is told to stop. `rounds` counts the calls of a phase.
const CLIENT: &str = r#"
import grpc, queue, sys, threading

port = sys.argv[1]
options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
           ("grpc.default_authority", "shop.example"), ("grpc.enable_retries", 0)]
channel = grpc.insecure_channel("127.0.0.1:" + port, options=options)
echo = channel.unary_unary("/shop.Shop/Echo")
talk = channel.stream_stream("/shop.Shop/Talk")

large = bytes(range(256)) * 8192
answer, call = echo.with_call(large, timeout=20)
assert answer == large
assert ("x-length", str(len(large))) in [(k, v) for k, v in call.trailing_metadata()], call.trailing_metadata()
assert list(channel.unary_stream("/shop.Shop/Count")(b"100", timeout=20)) == [str(n).encode() * 1000 for n in range(100)]
try:
    channel.unary_unary("/shop.Shop/Refuse")(b"", timeout=20)
    raise SystemExit("was not refused")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and error.details() == "not today", error

# A conversation: each answer is there before the next question is asked.
questions = queue.Queue()
answers = talk(iter(questions.get, None), timeout=60)
for number in range(100):
    questions.put(str(number).encode())
    assert next(answers).startswith(str(number).encode() + b" from ")
print("well", flush=True)

stop = threading.Event()
seen = set()
def call(worker):
    number = 0
    while not stop.is_set():
        message = f"{worker}.{number}".encode()
        assert echo(message, timeout=20) == message
        number += 1
failed = []
def work(worker):
    try:
        call(worker)
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads:
    thread.start()
sys.stdin.readline()
# The conversation has outlived whatever happened, with its instance.
questions.put(b"last")
assert next(answers).startswith(b"last from ")
questions.put(None)
assert list(answers) == []
stop.set()
for thread in threads:
    thread.join()
print("failed", failed, flush=True)
"#;

#[tokio::test]
async fn a_rolling_restart_fails_no_grpc_call_or_conversation() {
    let home = Home::new();
    let port = free_port();
    let lines = "environment: {INSTANCE: '{instance}'}\ninstance_count: 2\nupstream_protocol: h2c\ndrain_timeout: 60s\n";
    home.add_python("shop", port, SERVICE, lines);
    let server = Smoothserve::start(programs!(), home).await;
    let before = server.running("shop").await;
    let mut client = Script::python(CLIENT, &[&port.to_string()]);
    assert_eq!(client.next().await, "well");
    server.ok(&["restart", "--no-block", "shop"]).await;
    // The instance that serves the conversation drains until the conversation ends.
    let old = before.pids();
    server
        .until("an instance is replaced", |status| {
            let pids = status.services["shop"].pids();
            pids.iter().any(|pid| !old.contains(pid))
        })
        .await;
    assert_eq!(client.finish().await, "failed []");
    let after = server.running("shop").await;
    assert!(after.pids().iter().all(|pid| !old.contains(pid)));
    server.stop().await;
}

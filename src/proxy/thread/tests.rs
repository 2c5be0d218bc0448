//! Tests of the time limits, with a paused clock that advances whenever all tasks are idle.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::thread::Thread;
use crate::ipc::{Address, EndpointId, Handling, Host, ListenerId, Probe, Route};
use crate::proxy::connection::connection::serve;
use crate::proxy::exchange::client::Client;
use crate::proxy::shared::budget::Budget;
use crate::proxy::shared::router::Router;
use crate::proxy::shared::spec::EndpointSpec;
use crate::proxy::shared::threads::{Open, Reporter, Threads};
use crate::proxy::view::endpoint::Endpoint;
use crate::proxy::view::listener::{ListenerView, Routes};
use crate::proxy::view::service::ServiceView;

/// A client and a silent instance; `None` for a service without one.
struct Fixture {
    thread: Rc<Thread>,
    client: TcpStream,
    instance: Option<TcpListener>,
    service: Rc<ServiceView>,
    begin: Instant,
}

impl Fixture {
    /// Makes a fixture in which a task serves the connection. Must be called within a `LocalSet`.
    async fn new(with_instance: bool) -> Fixture {
        let any = ([127, 0, 0, 1], 0);
        let (report, _) = mpsc::unbounded_channel();
        let reporter = Reporter::new(0, report);
        let instance = match with_instance {
            true => Some(TcpListener::bind(SocketAddr::from(any)).await.unwrap()),
            false => None,
        };
        let endpoints = instance.iter().map(|socket| {
            let address = Address::Tcp(socket.local_addr().unwrap());
            let spec = EndpointSpec::new(EndpointId(1), address, Probe::Connect, 1);
            Rc::new(Endpoint::new(spec.into(), reporter.clone()))
        });
        let service = Rc::new(ServiceView::new("shop".to_owned()));
        service.update(true, endpoints.collect());
        let route = Route {
            host: Host::Any,
            path: "/".to_owned(),
            strip: 0,
            listener: ListenerId(1),
        };
        let mut router = Router::default();
        router.insert(0, &route).unwrap();
        let routes = Routes {
            tls: None,
            router: router.into(),
            services: [service.clone()].into(),
            proxy_protocol: false,
            passing: false,
        };
        let socket = TcpListener::bind(SocketAddr::from(any)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Rc::new(ListenerView::new(ListenerId(1), address, routes));
        let budget = Budget::new(None, 1);
        let threads = Arc::new(Threads::new(vec![mpsc::unbounded_channel().0], budget));
        let thread = Rc::new(Thread::new(threads.clone(), reporter).unwrap());
        let client = TcpStream::connect(address).await.unwrap();
        let (stream, peer) = socket.accept().await.unwrap();
        let watched = thread.clone();
        tokio::task::spawn_local(async move { watched.watch_parked().await });
        let open = Open::new(threads, 0, listener.id(), None).unwrap();
        thread.serve(stream.into_std().unwrap(), peer, listener, open);
        Fixture {
            thread,
            client,
            instance,
            service,
            begin: Instant::now(),
        }
    }

    async fn send(&mut self, bytes: &str) {
        self.client.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Receives a request, and returns the instance's end of the connection.
    async fn receive_request(&self) -> TcpStream {
        let socket = self.instance.as_ref().unwrap();
        let request = async {
            let (mut stream, _) = socket.accept().await.unwrap();
            read_head(&mut stream).await;
            stream
        };
        let long = Duration::from_secs(600);
        tokio::time::timeout(long, request)
            .await
            .expect("a request comes")
    }

    /// Returns everything that the client receives until its connection is closed, and after how
    /// many seconds it was closed.
    async fn receive_all(&mut self) -> (String, u64) {
        let mut bytes = Vec::new();
        self.client.read_to_end(&mut bytes).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        (text, self.begin.elapsed().as_secs())
    }
}

async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
}

async fn local<F: Future>(test: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(test).await
}

fn status(response: &str) -> &str {
    response.get(9..12).unwrap_or(response)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_closed_without_a_word() {
    local(async {
        let mut fixture = Fixture::new(true).await;
        assert_eq!(fixture.receive_all().await, (String::new(), 60));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_head_that_has_begun_has_15_seconds_however_it_drips() {
    local(async {
        let mut fixture = Fixture::new(true).await;
        fixture.send("GET / HTTP/1.1\r\n").await;
        for _ in 0..14 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            fixture.send("A: b\r\n").await;
        }
        let (response, seconds) = fixture.receive_all().await;
        assert_eq!((status(&response), seconds), ("408", 15));
        assert!(response.contains("\r\nConnection: close\r\n"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_has_60_seconds_to_respond() {
    local(async {
        let mut fixture = Fixture::new(true).await;
        fixture.send("GET / HTTP/1.0\r\n\r\n").await;
        let _silent = fixture.receive_request().await;
        let (response, seconds) = fixture.receive_all().await;
        assert_eq!((status(&response), seconds), ("504", 60));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_service_may_give_its_instances_another_time_to_respond_but_not_its_clients() {
    for limit in [5, 300] {
        local(async {
            let mut fixture = Fixture::new(true).await;
            fixture.service.set_handling(Handling {
                response_timeout: Duration::from_secs(limit),
                ..Handling::default()
            });
            fixture.send("GET / HTTP/1.0\r\n\r\n").await;
            let _silent = fixture.receive_request().await;
            let (response, seconds) = fixture.receive_all().await;
            assert_eq!((status(&response), seconds), ("504", limit));
        })
        .await;
        local(async {
            let mut fixture = Fixture::new(true).await;
            fixture.service.set_handling(Handling {
                response_timeout: Duration::from_secs(limit),
                ..Handling::default()
            });
            fixture
                .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
                .await;
            let _silent = fixture.receive_request().await;
            let (response, seconds) = fixture.receive_all().await;
            assert_eq!((status(&response), seconds), ("408", 60));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_may_take_long_but_not_stand_still() {
    local(async {
        let mut fixture = Fixture::new(true).await;
        fixture
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
            .await;
        let _silent = fixture.receive_request().await;
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            fixture.send("x").await;
        }
        let (response, seconds) = fixture.receive_all().await;
        assert_eq!((status(&response), seconds), ("408", 310));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_next_event_of_a_stream_comes_when_it_comes() {
    for (head, cut_off_after) in [
        (
            "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked",
            None,
        ),
        ("content-type: Text/Event-Stream; charset=utf-8", None),
        (
            "Content-Type: text/plain\r\nTransfer-Encoding: chunked",
            Some(60),
        ),
    ] {
        local(async {
            let mut fixture = Fixture::new(true).await;
            let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            fixture.send(request).await;
            let mut instance = fixture.receive_request().await;
            let head = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n");
            instance.write_all(head.as_bytes()).await.unwrap();
            if cut_off_after.is_none() {
                tokio::time::sleep(Duration::from_secs(10_000)).await;
                drop(instance);
            }
            let (_, seconds) = fixture.receive_all().await;
            assert_eq!(seconds, cut_off_after.unwrap_or(10_000));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_stands_still_is_cut_off() {
    local(async {
        let mut fixture = Fixture::new(true).await;
        fixture.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut instance = fixture.receive_request().await;
        let head = "HTTP/1.1 200 OK\r\nDate: d\r\nContent-Length: 100\r\n\r\n";
        instance.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            instance.write_all(b"x").await.unwrap();
        }
        let (response, seconds) = fixture.receive_all().await;
        assert_eq!((response, seconds), (format!("{head}xxxxx"), 310));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_cut_off() {
    local(async {
        let fixture = Fixture::new(true).await;
        let mut client = fixture.client;
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let socket = fixture.instance.unwrap();
        let (mut instance, _) = socket.accept().await.unwrap();
        instance
            .write_all(b"HTTP/1.1 200 OK\r\n\r\n")
            .await
            .unwrap();
        // Write until the buffers are full, and then wait until the connection ends.
        while instance.write_all(&[0; 64 << 10]).await.is_ok() {}
        assert_eq!(fixture.begin.elapsed().as_secs(), 60);
        let mut received = Vec::new();
        let end = client.read_to_end(&mut received).await;
        assert!(
            end.is_err(),
            "a reset, since the response would end with the connection"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_instance_is_held_for_10_seconds() {
    local(async {
        let mut fixture = Fixture::new(false).await;
        fixture.send("GET / HTTP/1.0\r\n\r\n").await;
        let (response, seconds) = fixture.receive_all().await;
        assert_eq!((status(&response), seconds), ("503", 10));
        assert!(response.contains("\r\nRetry-After: 1\r\n"));
    })
    .await;
}

/// Sends a request, and responds to it as the instance.
async fn exchange(fixture: &mut Fixture) {
    fixture.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut instance = fixture.receive_request().await;
    let response = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    instance.write_all(response).await.unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\nok") {
        received.push(fixture.client.read_u8().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_idle_for_long_is_parked_and_serves_its_next_request() {
    local(async {
        let mut fixture = Fixture::new(true).await;
        for idle in [1, 10, 58, 58] {
            exchange(&mut fixture).await;
            assert_eq!(fixture.thread.parked(), 0);
            tokio::time::sleep(Duration::from_secs(idle)).await;
            assert_eq!(fixture.thread.parked() == 1, idle > 2, "{idle}");
        }
        exchange(&mut fixture).await;
        let before = fixture.begin.elapsed().as_secs();
        let (rest, end) = fixture.receive_all().await;
        assert_eq!((rest.as_str(), end - before), ("", 60));
        assert_eq!(fixture.thread.parked(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_parked_connection_whose_client_goes_is_forgotten() {
    local(async {
        let mut fixture = Fixture::new(true).await;
        exchange(&mut fixture).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.thread.parked(), 1);
        fixture.client.shutdown().await.unwrap();
        let (rest, end) = fixture.receive_all().await;
        assert_eq!((rest.as_str(), end), ("", 5));
        assert_eq!(fixture.thread.parked(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_parked_connection_has_its_time_for_one_more_request_when_the_worker_drains() {
    for asks in [true, false] {
        local(async {
            let mut fixture = Fixture::new(true).await;
            exchange(&mut fixture).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(fixture.thread.parked(), 1);
            fixture.thread.drain(Duration::from_secs(4));
            tokio::time::sleep(Duration::from_secs(3)).await;
            if asks {
                exchange(&mut fixture).await;
            }
            let (rest, end) = fixture.receive_all().await;
            assert_eq!((rest.as_str(), end), ("", if asks { 8 } else { 9 }));
            assert_eq!(fixture.thread.parked(), 0);
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_drain_changes_the_time_of_idle_connections() {
    for parked in [1, 0] {
        local(async {
            let mut fixture = Fixture::new(true).await;
            exchange(&mut fixture).await;
            tokio::time::sleep(Duration::from_secs(5 * parked)).await;
            assert_eq!(fixture.thread.parked() as u64, parked);
            fixture.thread.drain(Duration::from_secs(40));
            tokio::time::sleep(Duration::from_secs(10)).await;
            fixture.thread.drain(Duration::from_secs(3));
            let (rest, end) = fixture.receive_all().await;
            assert_eq!((rest.as_str(), end), ("", 13 + 5 * parked));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_leaves_time_for_one_more_request_after_each_response_that_promised_it() {
    for asks in [true, false] {
        local(async {
            let mut fixture = Fixture::new(true).await;
            fixture.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let mut instance = fixture.receive_request().await;
            let begun = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\no";
            instance.write_all(begun).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\no") {
                head.push(fixture.client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            assert!(!head.contains("close"), "{head}");

            // The rest of the response comes long after the drain has begun.
            fixture.thread.drain(Duration::from_secs(3));
            tokio::time::sleep(Duration::from_secs(10)).await;
            instance.write_all(b"k").await.unwrap();
            assert_eq!(fixture.client.read_u8().await.unwrap(), b'k');
            tokio::time::sleep(Duration::from_secs(2)).await;
            if asks {
                fixture.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
                let mut instance = fixture.receive_request().await;
                let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                instance.write_all(response).await.unwrap();
            }
            let (rest, end) = fixture.receive_all().await;
            assert_eq!(end, if asks { 12 } else { 13 });
            assert_eq!(rest.ends_with("ok"), asks, "{rest}");
            assert_eq!(rest.contains("Connection: close"), asks, "{rest}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_leaves_an_idle_client_with_http2_the_time_to_hear_of_it() {
    local(async {
        let mut fixture = Fixture::new(true).await;
        // The preface, and SETTINGS without any setting.
        let begin = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        fixture.send(begin).await;
        // A moment later, the connection would count as one that has been idle for long.
        tokio::time::sleep(Duration::from_millis(1900)).await;
        fixture.thread.drain(Duration::from_secs(3));
        let mut received = Vec::new();
        fixture.client.read_to_end(&mut received).await.unwrap();
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff];
        assert!(received.windows(goaway.len()).any(|bytes| bytes == goaway));
        assert_eq!(fixture.begin.elapsed().as_secs(), 61);
    })
    .await;
}

#[test]
fn an_idle_connection_is_small() {
    // What lies in memory for each idle connection beside the socket and its timer: itself, and the
    // task that waits.
    assert!(size_of::<Client>() <= 160, "{}", size_of::<Client>());
    fn size_of_output<T, F>(_: impl Fn(T) -> F) -> usize {
        size_of::<F>()
    }
    let task = size_of_output(serve);
    // After a while, only a connection with TLS or HTTP/2 still has a task.
    assert!(task <= 248, "{task}");
}

//! The real worker process, driven as the manager drives it.

mod kit;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use kit::*;
use smoothserve::ipc::EndpointState::{Active, Draining, Probing};
use smoothserve::ipc::{
    EndpointId, FromWorker, HealthCheck, Probe, Protocol, ToWorker, WireEndpoint, WireTable,
};
use smoothserve_kit::{free_port, local};

const ONE: EndpointId = EndpointId(1);

fn probed(endpoint: EndpointId, result: Result<(), String>) -> FromWorker {
    FromWorker::Probed {
        endpoint,
        result: result.map_err(Into::into),
    }
}

#[tokio::test]
async fn tables_are_acknowledged_in_order_and_old_ones_are_ignored() {
    let worker = Worker::start();
    let mut manager = worker.connect().await;
    for number in [3, 4, 9] {
        manager.apply(&table(number, vec![], vec![])).await;
    }
    manager
        .send(ToWorker::Table(table(5, vec![], vec![])))
        .await;
    manager.wait_for_message(&FromWorker::Acknowledged(9)).await;
    assert!(!manager.log.contains(&FromWorker::Acknowledged(5)));
}

#[tokio::test]
async fn a_table_that_contradicts_itself_changes_nothing() {
    let worker = Worker::start();
    let mut manager = worker.connect().await;
    let (_, address) = listen();
    let never_sent = table(1, vec![listener(1, address)], vec![service("shop", vec![])]);
    manager.send(ToWorker::Table(never_sent)).await;
    let without_listener = table(2, vec![], vec![service("shop", vec![])]);
    manager.send(ToWorker::Table(without_listener)).await;
    let of_another = WireTable {
        since: 2,
        ..table(3, vec![], vec![])
    };
    manager.send(ToWorker::Table(of_another)).await;
    manager.apply(&table(4, vec![], vec![])).await;
    let refused = |message: &FromWorker| match message {
        FromWorker::Refused(number) => Some(*number),
        _ => None,
    };
    assert!(manager.log.iter().filter_map(refused).eq([1, 2, 3]));
    assert_eq!(manager.log.len(), 5, "{:?}", manager.log);
}

#[tokio::test]
async fn a_new_endpoint_is_probed_until_it_answers() {
    let worker = Worker::start();
    let mut manager = worker.connect().await;
    // Outgoing connections do not get this port while nobody listens on it.
    let address = local(free_port());
    let one = |state| WireEndpoint {
        id: ONE,
        address: smoothserve::ipc::Address::Tcp(address),
        state,
        protocol: Protocol::default(),
        probe: Probe::Http("/health".to_owned()),
        check: HealthCheck::Steady,
    };
    let probing = table(1, vec![], vec![unrouted("shop", vec![one(Probing)])]);
    manager.apply(&probing).await;
    let fault = format!("connect to {address}: connection refused");
    manager.wait_for_message(&probed(ONE, Err(fault))).await;
    let _instance = Instance::start_at("one", address).await;
    manager.wait_for_message(&probed(ONE, Ok(()))).await;
    manager
        .apply(&table(2, vec![], vec![unrouted("shop", vec![one(Active)])]))
        .await;
}

#[tokio::test]
async fn a_new_manager_takes_over_and_learns_the_current_state() {
    let worker = Worker::start();
    let mut first = worker.connect().await;
    let ready = Instance::start("ready").await;
    let drained = Instance::start("drained").await;
    let endpoints = vec![
        endpoint(1, &ready, Probing),
        endpoint(2, &drained, Draining),
    ];
    first
        .apply(&table(4, vec![], vec![unrouted("shop", endpoints)]))
        .await;
    // The probe may be faster than the last thread.
    if !first.log.contains(&probed(ONE, Ok(()))) {
        first.wait_for_message(&probed(ONE, Ok(()))).await;
    }
    let mut second = worker.connect().await;
    second.wait_for_message(&probed(ONE, Ok(()))).await;
    assert_eq!(
        second.log[1..],
        [
            FromWorker::Acknowledged(4),
            FromWorker::Idle(EndpointId(2)),
            probed(ONE, Ok(())),
        ]
    );
    second.apply(&table(5, vec![], vec![])).await;
}

#[tokio::test]
async fn requests_go_on_without_a_manager() {
    let worker = Worker::start();
    let mut manager = worker.connect().await;
    let instance = Instance::start("one").await;
    let (socket, address) = listen();
    manager.send_listener(1, &socket).await;
    manager
        .apply(&table(
            1,
            vec![listener(1, address)],
            vec![service("shop", vec![endpoint(1, &instance, Active)])],
        ))
        .await;
    drop(manager);
    let mut client = Client::connect(address).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await, ok("one"));
    }
}

/// Starts a worker that serves one service with these instances on one port.
async fn serving(instances: &[&Instance]) -> (Worker, Manager, std::net::SocketAddr, WireTable) {
    let worker = Worker::start();
    let mut manager = worker.connect().await;
    let (socket, address) = listen();
    manager.send_listener(1, &socket).await;
    let endpoints = instances.iter().zip(1..);
    let endpoints = endpoints.map(|(instance, id)| endpoint(id, instance, Active));
    let table = table(
        1,
        vec![listener(1, address)],
        vec![service("shop", endpoints.collect())],
    );
    manager.apply(&table).await;
    (worker, manager, address, table)
}

#[tokio::test]
async fn race_02_an_endpoint_is_idle_only_after_its_last_request() {
    let [old, new] = [Instance::start("old").await, Instance::start("new").await];
    let (_worker, mut manager, address, mut table) = serving(&[&old]).await;
    let mut waiting = Client::connect(address).await;
    waiting.send("/wait").await;
    manager.wait_for_in_flight(ONE, 1).await;
    let mut other = Client::connect(address).await;
    assert_eq!(other.get("/").await, ok("old"));

    table.number = 2;
    first(&mut table).endpoints[0].state = Draining;
    first(&mut table).endpoints.push(endpoint(2, &new, Active));
    manager.apply(&table).await;
    assert_eq!(other.get("/").await, ok("new"));
    assert_eq!(old.connections(), 1, "the idle ones are closed");
    assert!(!manager.log.contains(&FromWorker::Idle(ONE)));

    old.answer_one();
    manager.wait_for_message(&FromWorker::Idle(ONE)).await;
    assert_eq!(waiting.receive().await, ok("old"));
    manager.wait_for_in_flight(ONE, 0).await;
    assert_eq!(old.connections(), 0);
}

#[tokio::test]
async fn race_04_an_instance_that_stops_when_idle_takes_no_request_with_it() {
    let mut current = Instance::start("one").await;
    let (_worker, mut manager, address, mut table) = serving(&[&current]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU32::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..8 {
        let stop = stop.clone();
        let answered = answered.clone();
        clients.spawn(async move {
            let mut client = Client::connect(address).await;
            while !stop.load(Ordering::Relaxed) {
                // Half of the clients keep their connection.
                if number % 2 == 0 {
                    client = Client::connect(address).await;
                }
                assert_eq!(client.get("/").await, ok("one"));
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for id in 2..32 {
        let next = Instance::start("one").await;
        let before = table.clone();
        table.number = id;
        let endpoints = &mut first(&mut table).endpoints;
        endpoints.retain(|endpoint| endpoint.state == Active);
        endpoints[0].state = Draining;
        endpoints.push(endpoint(id, &next, Active));
        // Every other table comes whole, as from a manager that has just started.
        let changes = table.changes_since(&before);
        manager
            .apply(if id % 2 == 0 { &changes } else { &table })
            .await;
        let drained = FromWorker::Idle(EndpointId(id - 1));
        if !manager.log.contains(&drained) {
            manager.wait_for_message(&drained).await;
        }
        // The instance ends as abruptly as possible: whatever is still open is reset.
        std::mem::replace(&mut current, next).stop().await;
        let before = answered.load(Ordering::Relaxed);
        while answered.load(Ordering::Relaxed) < before + 50 {
            if let Some(ended) = clients.try_join_next() {
                ended.expect("every request is answered");
            }
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    clients.join_all().await;
}

#[tokio::test]
async fn race_17_a_draining_endpoint_is_never_revived() {
    let instance = Instance::start("one").await;
    let (_worker, mut manager, address, mut table) = serving(&[&instance]).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get("/").await, ok("one"));

    table.number = 2;
    first(&mut table).endpoints[0].state = Draining;
    manager.apply(&table).await;
    manager.wait_for_message(&FromWorker::Idle(ONE)).await;
    table.number = 3;
    first(&mut table).running = false;
    first(&mut table).endpoints[0].state = Active;
    manager.apply(&table).await;
    table.number = 4;
    first(&mut table).endpoints[0].state = Probing;
    manager.apply(&table).await;

    assert_eq!(client.get("/").await.status, 503);
    assert_eq!(instance.connections(), 0);
    let probe = |message: &FromWorker| matches!(message, FromWorker::Probed { .. });
    assert!(!manager.log.iter().any(probe), "{:?}", manager.log);
}

#[tokio::test]
async fn requests_are_held_until_an_endpoint_is_active() {
    let (_worker, mut manager, address, mut table) = serving(&[]).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Client::connect(address).await;
        client.send("/").await;
        clients.push(client);
    }
    manager.wait_for_connections(20).await;
    let instance = Instance::start("one").await;
    table.number = 2;
    first(&mut table).endpoints = vec![endpoint(1, &instance, Active)];
    manager.apply(&table).await;
    for client in &mut clients {
        assert_eq!(client.receive().await, ok("one"));
    }
    table.number = 3;
    first(&mut table).running = false;
    first(&mut table).endpoints.clear();
    manager.apply(&table).await;
    assert_eq!(clients[0].get("/").await.status, 503);
}

#[tokio::test]
async fn a_removed_listener_leaves_the_other_ports_alone() {
    let instance = Instance::start("one").await;
    let (_worker, mut manager, kept, mut table) = serving(&[&instance]).await;
    let (socket, removed) = listen();
    manager.send_listener(2, &socket).await;
    drop(socket);
    table.number = 2;
    table.listeners.push(listener(2, removed));
    first(&mut table).routes.push(route(2));
    manager.apply(&table).await;
    let mut on_kept = Client::connect(kept).await;
    let mut on_removed = Client::connect(removed).await;
    assert_eq!(on_kept.get("/").await, ok("one"));
    assert_eq!(on_removed.get("/").await, ok("one"));

    table.number = 3;
    table.listeners.pop();
    first(&mut table).routes.pop();
    manager.apply(&table).await;
    assert_eq!(on_kept.get("/").await, ok("one"));
    assert_eq!(on_removed.get("/").await, last("one"));
    on_removed.closed().await;
    let refused = async {
        // The last thread closes its descriptor a moment after it has confirmed the table.
        while tokio::net::TcpStream::connect(removed).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused)
        .await
        .expect("the port is closed");
    assert_eq!(on_kept.get("/").await, ok("one"));
    assert_eq!(Client::connect(kept).await.get("/").await, ok("one"));
}

fn drain(idle: Duration) -> ToWorker {
    ToWorker::Drain {
        idle,
        limit: PATIENCE,
        tunnels: PATIENCE,
    }
}

#[tokio::test]
async fn a_worker_keeps_its_table_under_a_manager_that_it_does_not_understand() {
    let instance = Instance::start("one").await;
    let (worker, mut manager, address, mut table) = serving(&[&instance]).await;
    let mut client = Client::connect(address).await;
    manager.send_raw(r#"{"Table":{"number":2,"services":"in a folder of their own"}}"#);
    // It may build on what was not understood.
    table.number = 3;
    first(&mut table).endpoints.clear();
    let (socket, _) = listen();
    manager.send_listener(2, &socket).await;
    manager.send(ToWorker::Table(table)).await;
    manager.send(ToWorker::Ping(7)).await;
    manager.wait_for_message(&FromWorker::Pong(7)).await;
    let is_answer = |message: &FromWorker| {
        matches!(
            message,
            FromWorker::Acknowledged(2..) | FromWorker::Refused(_)
        )
    };
    assert!(!manager.log.iter().any(is_answer), "{:?}", manager.log);
    assert_eq!(client.get("/").await, ok("one"));
    manager.send(drain(PATIENCE)).await;
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.get("/").await, last("one"));
    client.closed().await;
    assert!(worker.exited().await.success());
}

#[tokio::test]
async fn race_06_a_draining_worker_serves_what_was_accepted_and_shares_its_socket() {
    let instance = Instance::start("one").await;
    let (socket, address) = listen();
    let table = table(
        1,
        vec![listener(1, address)],
        vec![service("shop", vec![endpoint(1, &instance, Active)])],
    );
    let worker = Worker::start();
    let mut manager = worker.connect().await;
    // The kernel accepts these connections before the worker has the socket.
    let mut queued = Vec::new();
    for _ in 0..30 {
        let mut client = Client::connect(address).await;
        client.send("/").await;
        queued.push(client);
    }
    manager.send_listener(1, &socket).await;
    manager.send(ToWorker::Table(table.clone())).await;
    manager.send(drain(Duration::ZERO)).await;
    for mut client in queued {
        let response = client.receive().await;
        assert_eq!((response.status, response.body.as_str()), (200, "one"));
        client.closed().await;
    }
    assert!(worker.exited().await.success());

    // The next worker can use the socket as before.
    let mut early = Client::connect(address).await;
    early.send("/").await;
    let next = Worker::start();
    let mut manager = next.connect().await;
    manager.send_listener(1, &socket).await;
    manager.apply(&table).await;
    assert_eq!(early.receive().await, ok("one"));
}

#[tokio::test]
async fn race_08_a_draining_worker_answers_one_more_request_of_an_idle_client() {
    let instance = Instance::start("one").await;
    let (worker, mut manager, address, _) = serving(&[&instance]).await;
    let mut idle = Client::connect(address).await;
    assert_eq!(idle.get("/").await, ok("one"));
    let mut waiting = Client::connect(address).await;
    waiting.send("/wait").await;
    manager.wait_for_in_flight(ONE, 1).await;

    manager.send(drain(PATIENCE)).await;
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert_eq!(idle.get("/").await, last("one"));
    idle.closed().await;
    instance.answer_one();
    assert_eq!(waiting.receive().await, last("one"));
    waiting.closed().await;
    assert!(worker.exited().await.success());
}

#[tokio::test]
async fn a_draining_worker_still_follows_tables_and_reports_idleness() {
    let [old, new] = [Instance::start("old").await, Instance::start("new").await];
    let (worker, mut manager, address, mut table) = serving(&[&old]).await;
    let mut idle = Client::connect(address).await;
    assert_eq!(idle.get("/").await, ok("old"));
    manager.send(drain(PATIENCE)).await;
    table.number = 2;
    first(&mut table).endpoints[0].state = Draining;
    first(&mut table).endpoints.push(endpoint(2, &new, Active));
    // The table names a listener that the draining worker was never given.
    let (_, elsewhere) = listen();
    table.listeners.push(listener(2, elsewhere));
    manager.apply(&table).await;
    manager.wait_for_message(&FromWorker::Idle(ONE)).await;
    assert_eq!(idle.get("/").await, last("new"));
    idle.closed().await;
    assert!(worker.exited().await.success());
}

#[tokio::test]
async fn a_draining_worker_closes_idle_connections_and_cuts_off_the_rest_at_its_limit() {
    let instance = Instance::start("one").await;
    let (worker, mut manager, address, _) = serving(&[&instance]).await;
    let mut idle = Client::connect(address).await;
    assert_eq!(idle.get("/").await, ok("one"));
    let mut stuck = Client::connect(address).await;
    stuck.send("/wait").await;
    manager.wait_for_in_flight(ONE, 1).await;
    manager
        .send(ToWorker::Drain {
            idle: Duration::from_millis(100),
            limit: Duration::from_secs(1),
            tunnels: Duration::from_secs(1),
        })
        .await;
    idle.closed().await;
    assert!(worker.exited().await.success());
}

#[tokio::test]
async fn sigterm_drains_a_worker() {
    let instance = Instance::start("one").await;
    let (mut worker, mut manager, address, _) = serving(&[&instance]).await;
    let mut waiting = Client::connect(address).await;
    waiting.send("/wait").await;
    manager.wait_for_in_flight(ONE, 1).await;
    rustix::process::kill_process(worker.pid(), rustix::process::Signal::HUP).unwrap();
    rustix::process::kill_process(worker.pid(), rustix::process::Signal::TERM).unwrap();
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(worker.is_running());
    instance.answer_one();
    assert_eq!(waiting.receive().await, last("one"));
    assert!(worker.exited().await.success());
}

#[tokio::test]
async fn an_active_endpoint_that_fails_its_health_check_is_removed_and_restored() {
    // Outgoing connections do not get this port while nobody listens on it.
    let place = local(free_port());
    let [bad, good] = [
        Instance::start_at("bad", place).await,
        Instance::start("good").await,
    ];
    let (_worker, mut manager, address, _) = serving(&[&bad, &good]).await;
    bad.stop().await;
    let fault = manager
        .wait_for(|message| match message {
            FromWorker::Health {
                endpoint: ONE,
                fault: Some(fault),
            } => Some(fault.clone()),
            _ => None,
        })
        .await;
    assert_eq!(&*fault, format!("connect to {place}: connection refused"));
    for _ in 0..4 {
        let mut client = Client::connect(address).await;
        assert_eq!(client.get("/").await, ok("good"));
    }
    let _back = Instance::start_at("back", place).await;
    manager
        .wait_for_message(&FromWorker::Health {
            endpoint: ONE,
            fault: None,
        })
        .await;
    let mut client = Client::connect(address).await;
    let names = [client.get("/").await.body, client.get("/").await.body];
    assert!(names.contains(&"back".to_owned()), "{names:?}");
}

#[tokio::test]
async fn the_health_that_a_rollout_asks_for_is_reported_to_every_manager() {
    // Outgoing connections do not get this port while nobody listens on it.
    let place = local(free_port());
    let instance = Instance::start_at("one", place).await;
    let (worker, mut manager, _, mut table) = serving(&[&instance]).await;
    let check = |table: &mut WireTable, check| {
        table.number += 1;
        let service = std::sync::Arc::make_mut(&mut table.services[0]);
        service.endpoints[0].check = check;
    };
    let health = |fault: Option<&str>| FromWorker::Health {
        endpoint: ONE,
        fault: fault.map(Into::into),
    };
    check(&mut table, HealthCheck::Report);
    manager.apply(&table).await;
    manager.wait_for_message(&health(None)).await;
    let mut manager = worker.connect().await;
    manager.wait_for_message(&health(None)).await;
    check(&mut table, HealthCheck::Close);
    manager.apply(&table).await;
    instance.stop().await;
    let fault = format!("connect to {place}: connection refused");
    manager.wait_for_message(&health(Some(&fault))).await;
    check(&mut table, HealthCheck::Report);
    manager.apply(&table).await;
    manager.wait_for_message(&health(Some(&fault))).await;
}

#[tokio::test]
async fn connections_are_spread_over_the_threads_and_counted() {
    let instance = Instance::start("one").await;
    let (_worker, mut manager, address, _) = serving(&[&instance]).await;
    let mut clients = Vec::new();
    for _ in 0..16 {
        let mut client = Client::connect(address).await;
        assert_eq!(client.get("/").await, ok("one"));
        clients.push(client);
    }
    manager.wait_for_connections(16).await;
    assert!(
        instance.connections() >= 2,
        "every thread has a connection of its own to the instance"
    );
    clients.clear();
    manager.wait_for_connections(0).await;
}

#[tokio::test]
async fn a_worker_without_a_control_socket_fails() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_smoothserve"))
        .arg("proxy")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
}

#[tokio::test]
async fn a_worker_with_die_with_parent_serves_while_its_parent_lives() {
    let worker = Worker::start_with(&["--threads", "1", "--die-with-parent"]);
    let mut manager = worker.connect().await;
    manager.apply(&table(1, vec![], vec![])).await;
}

#[tokio::test]
async fn a_worker_with_die_with_parent_refuses_to_start_after_the_end_of_its_parent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let socket = std::os::unix::net::UnixListener::bind(path).unwrap();
    // The shell stands for any process that adopts the worker of a manager that has ended: the
    // shell did not make the socket.
    let status = std::process::Command::new("sh")
        .args(["-c", "\"$0\" proxy --die-with-parent; exit $?"])
        .arg(env!("CARGO_BIN_EXE_smoothserve"))
        .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(
            socket,
        )))
        .status()
        .unwrap();
    assert!(!status.success());
}

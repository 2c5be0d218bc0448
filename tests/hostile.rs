//! Processes of smoothserve's own that do the worst they can: a worker that was taken over, and
//! instances that write without an end to a terminal that nobody reads.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal};
use smoothserve::ipc::{BoundCounts, EndpointCounts, EndpointId, FromWorker, MESSAGES};
use smoothserve_kit::{
    Build, Bystander, Home, PATIENCE, Smoothserve, Start, example, free_port, local, programs,
    write,
};

/// A smoothserve whose service `shop` starts and never becomes ready, and whose worker is taken
/// over.
struct TakenOver {
    server: Smoothserve,
    app: smoothserve_kit::App,
    worker: TakenWorker,
    /// The worker's end of the connection to the manager.
    socket: UnixStream,
    /// The number of the instance that starts.
    instance: u64,
    /// Asks the manager. The worker serves nobody, since it is taken over.
    bystander: Bystander,
}

/// Returns false if this test cannot take over a worker.
fn may_take_over() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root can take the descriptors of a worker");
    }
    is_root
}

impl TakenOver {
    async fn begin() -> TakenOver {
        let home = Home::new();
        let app = home.add_shop("shop", free_port(), "start_timeout: 10m\n");
        app.replace(&Build::starting("1", Start::Mute));
        let server = Smoothserve::spawn(programs!(), home);
        server.says("worker connected").await;
        let status = server.until("it starts", |status| {
            let shop = status.services.get("shop");
            shop.is_some_and(|shop| shop.instances.iter().any(|instance| instance.pid > 0))
        });
        let instance = status.await.services["shop"].instances[0].id;
        let log = server.log();
        let (_, rest) = log.split_once("worker started pid=").unwrap();
        let pid = rest.split_whitespace().next().unwrap().parse().unwrap();
        let worker = Pid::from_raw(pid).unwrap();
        // From here on the worker does only what this test does for it.
        rustix::process::kill_process(worker, Signal::STOP).unwrap();
        let socket = connection_to_manager(worker, &server);
        server.confine();
        let mut bystander = Bystander::of_manager(&server.bus());
        bystander.is_served().await;
        TakenOver {
            server,
            app,
            worker: TakenWorker(worker),
            socket,
            instance,
            bystander,
        }
    }

    /// Sends messages until the manager takes no more or has taken all. Returns whether it has.
    fn flood(&mut self, frames: &[u8], times: usize) -> bool {
        self.socket.set_nonblocking(false).unwrap();
        self.socket.set_write_timeout(Some(PATIENCE)).unwrap();
        (0..times).all(|_| self.socket.write_all(frames).is_ok())
    }

    /// Waits until the manager has another worker, which serves.
    async fn ends_in_replacement(mut self) {
        self.bystander.is_served().await;
        self.bystander.end();
        self.server.says("worker ended, starting another").await;
        assert!(self.server.status().await.is_some());
        self.app.replace(&Build::good("2"));
        self.server.ok(&["restart", "shop"]).await;
        self.server.running("shop").await;
        self.server.assert_small();
        self.server.stop().await;
    }
}

/// A worker that does nothing more by itself.
struct TakenWorker(Pid);

impl TakenWorker {
    fn kill(&self) {
        // It may be gone already.
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
    }
}

impl Drop for TakenWorker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Takes a copy of the worker's descriptor of its connection to the manager.
fn connection_to_manager(worker: Pid, server: &Smoothserve) -> UnixStream {
    let folder = format!("/proc/{}/fd", worker.as_raw_nonzero());
    let run_dir = server.home.run();
    // An accepted socket has the name of the socket that has accepted it.
    let sockets = fs::read_to_string("/proc/net/unix").unwrap();
    let mut connected = sockets.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, _, _, "03", inode, path] = words[..] else {
            return None;
        };
        let is_workers = path.starts_with(run_dir.to_str()?) && path.contains("/worker-");
        is_workers.then(|| format!("socket:[{inode}]"))
    });
    let wanted = connected.next().expect("the worker is connected");
    let mut descriptors = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let descriptor = descriptors.find(|entry| {
        fs::read_link(entry.path()).is_ok_and(|target| target.to_str() == Some(&wanted))
    });
    let number = descriptor.unwrap().file_name();
    let number = number.to_str().unwrap().parse().unwrap();
    let pidfd = rustix::process::pidfd_open(worker, PidfdFlags::empty()).unwrap();
    let copy = rustix::process::pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty());
    copy.expect("this test may trace it").into()
}

fn frame(message: &FromWorker) -> Vec<u8> {
    frame_of(&serde_json::to_vec(message).unwrap())
}

fn frame_of(json: &[u8]) -> Vec<u8> {
    [&u32::try_from(json.len()).unwrap().to_le_bytes(), json].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_repeats_itself_without_an_end_is_replaced() {
    if !may_take_over() {
        return;
    }
    let mut scene = TakenOver::begin().await;
    let probed = frame(&FromWorker::Probed {
        endpoint: EndpointId(scene.instance),
        result: Ok(()),
    });
    let flood = probed.repeat(1000);
    // The manager is asked between any two portions.
    for _ in 0..100 {
        let more = scene.flood(&flood, 1);
        assert!(scene.server.status().await.is_some());
        if !more {
            break;
        }
    }
    scene
        .server
        .says("worker sends too many messages, killing it")
        .await;
    scene.ends_in_replacement().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_says_is_cut_and_too_much_at_once_is_not_read() {
    if !may_take_over() {
        return;
    }
    let mut scene = TakenOver::begin().await;
    let reason = "x".repeat(7 << 20);
    let json = format!(
        r#"{{"Probed":{{"endpoint":{},"result":{{"Err":"{reason}"}}}}}}"#,
        scene.instance
    );
    let long = frame_of(json.as_bytes());
    assert!(scene.flood(&long, 20));
    assert!(scene.server.status().await.is_some());
    scene.server.assert_small();
    // A frame of 60 MB, of which the manager reads not even the beginning.
    let mut head = (60_u32 << 20).to_le_bytes().to_vec();
    head.push(b'{');
    assert!(scene.flood(&head, 1));
    scene.server.says("over the limit of 8388608").await;
    let status = scene.server.status().await;
    assert!(status.is_some());
    scene.bystander.is_served().await;
    scene.bystander.end();
    scene.worker.kill();
    scene.server.says("worker started pid=").await;
    scene.server.assert_small();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_no_state_changes_nothing() {
    if !may_take_over() {
        return;
    }
    let mut scene = TakenOver::begin().await;
    let id = EndpointId(scene.instance);
    let counts = |id, number| EndpointCounts {
        id,
        in_flight: u32::MAX,
        tunnels: u32::MAX,
        requests: number,
        failures: u64::MAX,
    };
    let messages = [
        FromWorker::Hello {
            version: "2".into(),
            messages: MESSAGES,
            unix_sockets: false,
        },
        FromWorker::Acknowledged(u64::MAX),
        FromWorker::Idle(id),
        FromWorker::Idle(EndpointId(u64::MAX)),
        FromWorker::Health {
            endpoint: id,
            fault: Some("no".into()),
        },
        FromWorker::OnlyTunnels,
        FromWorker::Pong(u64::MAX),
        FromWorker::Counts {
            connections: u32::MAX,
            bounds: BoundCounts {
                waiting: u32::MAX,
                refused_requests: u64::MAX,
                ..BoundCounts::default()
            },
            endpoints: vec![
                counts(id, u64::MAX),
                counts(id, u64::MAX - 1),
                counts(EndpointId(0), 1),
            ],
        },
    ];
    let frames: Vec<u8> = messages.iter().flat_map(frame).collect();
    assert!(scene.flood(&frames, 20));
    let seen = scene.server.until("the counts have come", |status| {
        status.services["shop"].instances[0].in_flight == u64::from(u32::MAX)
    });
    let status = seen.await;
    assert_eq!(status.services["shop"].instances[0].state, "starting");
    assert_eq!(scene.server.log().matches("worker connected").count(), 1);
    assert!(!scene.server.log().contains("unhealthy"));
    scene.worker.kill();
    scene.ends_in_replacement().await;
}

/// Installs a service whose executable is a script.
fn home_with_script(script: &str, lines: &str) -> Home {
    let home = Home::new();
    let app = home.app("shop");
    write(&app.executable(), script);
    fs::set_permissions(app.executable(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(app.folder(), fs::Permissions::from_mode(0o777)).unwrap();
    home.write_shop("shop", free_port(), lines);
    home
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_a_stranger_takes_gets_no_requests_and_costs_no_rollout() {
    // The first instance finds its port taken. It ends, or it runs on and serves IPv6 only.
    for fails in ["exit 1", "exec sleep 1000"] {
        let script = format!(
            "#!/bin/sh\n\
             if mkdir first; then\n\
             echo $PORT > port.new; mv port.new port\n\
             while [ ! -e taken ]; do sleep 0.02; done\n\
             {fails}\n\
             fi\n\
             exec {} -port=$PORT\n",
            example("shop").display()
        );
        let home = home_with_script(&script, "");
        let folder = home.app("shop").folder().to_owned();
        let server = Smoothserve::spawn(programs!(), home);
        let port = async {
            loop {
                if let Ok(port) = fs::read_to_string(folder.join("port")) {
                    return port.trim().parse::<u16>().unwrap();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let port = tokio::time::timeout(PATIENCE, port).await.unwrap();
        let _stranger = std::net::TcpListener::bind(local(port)).unwrap();
        write(&folder.join("taken"), "");
        let shop = server.running("shop").await;
        assert_ne!(shop.instances[0].address, local(port).to_string());
        assert!(shop.last_error.is_none(), "{:?}", shop.last_error);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_nobody_reads_holds_nobody_up() {
    let script = "#!/bin/sh\nhead -c 5000000 /dev/zero | tr '\\0' 'x' | fold -w 100\necho; \
                  echo done > seen.new; mv seen.new seen; exec sleep 1000\n";
    let home = home_with_script(script, "ready: notify\nstart_timeout: 10m\n");
    let port = free_port();
    home.add_shop("web", port, "");
    let seen = home.app("shop").folder().join("seen");
    let (reader, writer) = std::io::pipe().unwrap();
    let server = Smoothserve::spawn_with(programs!(), home, None, |command| command.stderr(writer));
    server.running("web").await;
    server.confine();
    let bystanders = [
        Bystander::of_shop(local(port), "web.example"),
        Bystander::of_manager(&server.bus()),
    ];
    // The instance writes 50,000 lines, and the manager answers all the time.
    let done = async {
        while !seen.exists() {
            assert!(server.status().await.is_some() || !server.bus().exists());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, done)
        .await
        .expect("the instance goes on");
    Bystander::end_served(bystanders).await;
    server.assert_small();
    // From here on somebody reads, and is told how many lines were lost.
    let (tell, told) = tokio::sync::oneshot::channel();
    let reading = std::thread::spawn(move || {
        let (mut tell, mut lines) = (Some(tell), 0_u64);
        for line in BufReader::new(reader).lines() {
            let line = line.unwrap();
            lines += u64::from(line.starts_with("shop/1: x"));
            if let Some((_, lost)) =
                line.split_once("lines of instances lost, they were not taken in time lost=")
                && let Some(tell) = tell.take()
            {
                let _ = tell.send(lost.trim().parse::<u64>().unwrap());
            }
        }
        lines
    });
    let lost = tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap();
    server.stop().await;
    let shown = reading.join().unwrap();
    assert!(lost > 0 && shown > 0);
    assert!(shown + lost >= 49_000, "{shown} shown, {lost} lost");
}

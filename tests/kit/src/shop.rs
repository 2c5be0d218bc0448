//! The example service as a process, without smoothserve.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{PATIENCE, example, free_port, local};

/// A running example service, killed when it is dropped.
#[derive(Debug)]
pub struct Shop {
    /// The address that the service listens on.
    pub address: SocketAddr,
    process: Child,
}

impl Shop {
    /// Starts the service on a free port, and waits until it listens.
    pub fn start() -> Shop {
        let port = free_port();
        let process = Command::new(example("shop"))
            .arg(format!("-port={port}"))
            .stdin(Stdio::null())
            .spawn()
            .expect("the example service can be started");
        let shop = Shop {
            address: local(port),
            process,
        };
        let begin = Instant::now();
        while TcpStream::connect(shop.address).is_err() {
            assert!(begin.elapsed() < PATIENCE, "the service does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        shop
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

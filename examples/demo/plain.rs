//! The shop without smoothserve, for comparison: one process that has the port itself, and is
//! stopped and started for a new version, as `systemctl restart` does.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use smoothserve_kit::{App, PATIENCE, local, processes};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// The pause between two attempts to reach the process.
const RETRY: Duration = Duration::from_millis(10);

/// The running process. It is killed when this is dropped.
pub(crate) struct PlainShop {
    pub(crate) app: App,
    pub(crate) port: u16,
    environment: (&'static str, &'static str),
    process: Child,
}

impl PlainShop {
    /// Starts the process, and waits until it listens.
    pub(crate) async fn start(
        app: App,
        port: u16,
        environment: (&'static str, &'static str),
    ) -> anyhow::Result<PlainShop> {
        let process = spawn(&app, port, environment)?;
        let shop = PlainShop {
            app,
            port,
            environment,
            process,
        };
        shop.listens().await?;
        Ok(shop)
    }

    /// Stops the process and starts it anew.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.end().await;
        self.process = spawn(&self.app, self.port, self.environment)?;
        self.listens().await
    }

    /// Stops the process for good.
    pub(crate) async fn stop(mut self) {
        self.end().await;
    }

    /// Tells the process to end, which it does after finishing its requests, and waits for its end.
    async fn end(&mut self) {
        if let Some(pid) = self.process.id() {
            processes::signal_pid(pid, Signal::TERM);
        }
        // It is a child that nobody else waits for, so the waiting does not fail.
        let _ = self.process.wait().await;
    }

    async fn listens(&self) -> anyhow::Result<()> {
        let connected = async {
            while TcpStream::connect(local(self.port)).await.is_err() {
                sleep(RETRY).await;
            }
        };
        match timeout(PATIENCE, connected).await {
            Ok(()) => Ok(()),
            Err(_) => bail!("the plain process does not listen on port {}", self.port),
        }
    }
}

fn spawn(app: &App, port: u16, environment: (&str, &str)) -> anyhow::Result<Child> {
    Command::new(app.executable())
        .arg(format!("-port={port}"))
        .envs([environment])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C on the terminal ends the demo, which then ends the process.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("start the plain process")
}

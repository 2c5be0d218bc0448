//! `make demo`: smoothserve with an example service under load, during the deploy of a new version
//! and a restart. The demo shows the progress of the rollouts, and at the end how the requests
//! fared.
//!
//! All state is in a temporary folder. With `DEMO_ONCE=1` the demo ends after its table; its exit
//! status is 1 if a request was lost.

mod screen;

use std::net::{Ipv6Addr, TcpListener};
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use screen::Screen;
use smoothserve_kit::bus::Bus;
use smoothserve_kit::load::{Load, Options, Report};
use smoothserve_kit::{App, Build, Home, PATIENCE, Programs, Smoothserve, free_port, local};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How long the load runs before and after the rollouts.
const QUIET: Duration = Duration::from_secs(7);

/// How often the screen is drawn.
const TICK: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match run().await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo, and returns the number of lost requests.
async fn run() -> anyhow::Result<u64> {
    // From here on, Ctrl-C does not end the demo at once, because smoothserve would stay behind.
    let mut end = End::new()?;
    let demo = tokio::select! {
        demo = Demo::start() => demo?,
        () = end.asked() => bail!("interrupted"),
    };
    let mut screen = Screen::new();
    screen.say(&format!(
        "smoothserve runs 3 instances of a shop on {}\n",
        demo.url()
    ));
    let report = tokio::select! {
        report = demo.show(&mut screen) => Some(report?),
        () = end.asked() => None,
    };
    let Some(report) = report else {
        screen.say("\nDraining and stopping …");
        demo.server.stop().await;
        bail!("interrupted");
    };
    screen.table(&report);
    if std::env::var_os("DEMO_ONCE").is_none() {
        screen.say(&demo.invitation());
        end.asked().await;
        screen.say("\nDraining and stopping …");
    }
    demo.server.stop().await;
    Ok(report.lost.len() as u64)
}

struct Demo {
    server: Smoothserve,
    programs: Programs,
    app: App,
    port: u16,
}

impl Demo {
    async fn start() -> anyhow::Result<Demo> {
        let programs = Programs::beside_examples();
        for program in [&programs.smoothserve, &programs.smoothctl] {
            if !program.exists() {
                bail!("{} is missing: `make demo` builds it", program.display());
            }
        }
        let home = Home::new();
        let port = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, 8080)) {
            Ok(_) => 8080,
            Err(_) => free_port(),
        };
        let app = home.app("shop");
        app.replace(&Build::good("1"));
        home.write_service(
            "shop",
            &format!(
                "name: shop\n\
                 server_name: _\n\
                 port: {port}\n\
                 executable_path: ../../apps/shop/shop\n\
                 instance_count: 3\n\
                 auto_restart: true\n\
                 environment:\n  SHOP_START_DELAY: 1s\n"
            ),
        );
        let server = Smoothserve::start(programs.clone(), home).await;
        Ok(Demo {
            server,
            programs,
            app,
            port,
        })
    }

    async fn show(&self, screen: &mut Screen) -> anyhow::Result<Report> {
        let load = Load::start(Options {
            host: "localhost".to_owned(),
            pause: Duration::from_millis(30),
            download: 2 << 20,
            upload: 512 << 10,
            ..Options::new(local(self.port))
        });
        load.phase("before");
        self.step(screen, &load, "load alone, nothing is changed", quiet())
            .await?;

        load.phase("during");
        let deploy = async {
            self.app.replace(&Build::good("2"));
            load.see("2", PATIENCE).await.map_err(anyhow::Error::msg)?;
            self.server.running("shop").await;
            Ok(())
        };
        let words = "deploy: version 2 takes the place of the file of version 1";
        self.step(screen, &load, words, deploy).await?;

        let restart = async {
            let bus = Bus::open(&self.server.bus())
                .await
                .context("connect to D-Bus")?;
            match bus.job("RestartService", "shop").await?.as_str() {
                "done" => Ok(()),
                result => bail!("the restart ended with {result:?}"),
            }
        };
        let words = "restart: RestartService(\"shop\") through D-Bus";
        self.step(screen, &load, words, restart).await?;

        load.phase("after");
        self.step(screen, &load, "load alone again", quiet())
            .await?;
        Ok(load.stop().await)
    }

    /// Runs one step of the demo, and shows the instances meanwhile.
    async fn step(
        &self,
        screen: &mut Screen,
        load: &Load,
        words: &str,
        doing: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        screen.begin(words);
        let mut doing = pin!(doing);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                result = &mut doing => {
                    if result.is_ok() {
                        screen.end();
                    }
                    return result;
                }
                _ = tick.tick() => {
                    if let Some(status) = self.server.status().await {
                        screen.draw(&status, load.counts());
                    }
                }
            }
        }
    }

    fn url(&self) -> String {
        format!("http://localhost:{}/", self.port)
    }

    /// Returns a text that tells the reader what to try with the running smoothserve.
    fn invitation(&self) -> String {
        let run = self.server.home.run();
        let smoothctl = self.programs.smoothctl.display();
        let (file, new) = (self.app.executable(), self.app.folder().join("new"));
        let (file, new) = (file.display(), new.display());
        let service = self.server.home.service("shop");
        format!(
            "It goes on running at {url}. In another terminal:\n\n\
             \x20 curl {url}\n\
             \x20 export SMOOTHSERVE_RUN_DIR={run}\n\
             \x20 {smoothctl} status\n\
             \x20 {smoothctl} restart shop\n\
             \n\
             deploy another version:\n\n\
             \x20 cp {file} {new} && printf '\\n#shop-build 3 well\\n' >> {new} && mv {new} {file}\n\
             \n\
             or one that crashes (put `crash` for `well`). The service is described in\n\n\
             \x20 {service}\n\
             \n\
             and `{smoothctl} reload` applies what you change there. Ctrl-C ends it.",
            url = self.url(),
            run = show(&run),
            service = show(&service),
        )
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

async fn quiet() -> anyhow::Result<()> {
    sleep(QUIET).await;
    Ok(())
}

/// The signals by which a user ends the demo.
struct End {
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn new() -> anyhow::Result<End> {
        Ok(End {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

//! `make demo`: smoothserve with an example service under load, during the deploy of a new version
//! and a restart. The same service as a plain process, which is stopped and started for both, gets
//! the same load beside it. The demo shows the progress of the rollouts, and at the end how the
//! requests of both fared.
//!
//! All state is in a temporary folder. With `DEMO_ONCE=1` the demo ends after its table; its exit
//! status is 1 if smoothserve has lost a request.

mod plain;
mod screen;

use std::net::{Ipv6Addr, TcpListener};
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use plain::PlainShop;
use screen::{Results, Screen};
use smoothserve_kit::bus::Bus;
use smoothserve_kit::load::{Load, Options};
use smoothserve_kit::{App, Build, Home, PATIENCE, Programs, Smoothserve, free_port, local};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How long the load runs before and after the rollouts.
const QUIET: Duration = Duration::from_secs(7);

/// How long the shop takes to start, in its own word.
const START_DELAY: (&str, &str) = ("SHOP_START_DELAY", "1s");

/// What the demo shows.
const SUBJECT: &str = "\
Two copies of a shop get the same load, then a new version and a restart, which take a second each.
smoothserve runs one of them, as 3 instances. The other is a plain process that is stopped and
started, as `systemctl restart` does. A request is lost if it gets no answer, or a wrong one.
";

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
    let mut screen = Screen::new();
    screen.say(SUBJECT);
    let mut demo = tokio::select! {
        demo = Demo::start() => demo?,
        () = end.asked() => bail!("interrupted"),
    };
    let results = tokio::select! {
        results = demo.show(&mut screen) => Some(results?),
        () = end.asked() => None,
    };
    let Some(results) = results else {
        screen.say("\nDraining and stopping …");
        demo.stop().await;
        bail!("interrupted");
    };
    screen.table(&results);
    if std::env::var_os("DEMO_ONCE").is_none() {
        screen.say(&demo.invitation());
        end.asked().await;
        screen.say("\nDraining and stopping …");
    }
    demo.stop().await;
    Ok(results.smooth.lost.len() as u64)
}

struct Demo {
    server: Smoothserve,
    programs: Programs,
    app: App,
    port: u16,
    plain: PlainShop,
}

/// The loads of both shops.
struct Loads {
    smooth: Load,
    plain: Load,
}

impl Loads {
    fn start(ports: [u16; 2]) -> Loads {
        let [smooth, plain] = ports.map(|port| {
            Load::start(Options {
                host: "localhost".to_owned(),
                connections: 16,
                pause: Duration::from_millis(30),
                download: 2 << 20,
                upload: 512 << 10,
                ..Options::new(local(port))
            })
        });
        Loads { smooth, plain }
    }

    fn phase(&self, name: &str) {
        self.smooth.phase(name);
        self.plain.phase(name);
    }

    async fn stop(self) -> Results {
        Results {
            smooth: self.smooth.stop().await,
            plain: self.plain.stop().await,
        }
    }
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
                 environment:\n  {}: {}\n",
                START_DELAY.0, START_DELAY.1
            ),
        );
        let plain = home.app("plain");
        plain.replace(&Build::good("1"));
        let server = Smoothserve::start(programs.clone(), home).await;
        let plain = PlainShop::start(plain, free_port(), START_DELAY).await?;
        Ok(Demo {
            server,
            programs,
            app,
            port,
            plain,
        })
    }

    async fn show(&mut self, screen: &mut Screen) -> anyhow::Result<Results> {
        let Demo {
            server, app, plain, ..
        } = self;
        let loads = Loads::start([self.port, plain.port]);
        loads.phase("before");
        let words = "load alone, nothing is changed";
        step(server, screen, &loads, words, quiet()).await?;

        loads.phase("during");
        let deploy = async {
            app.replace(&Build::good("2"));
            let seen = loads.smooth.see("2", PATIENCE).await;
            seen.map_err(anyhow::Error::msg)?;
            server.running("shop").await;
            Ok(())
        };
        let deploy_plain = async {
            plain.app.replace(&Build::good("2"));
            plain.restart().await
        };
        let words = "deploy: version 2 takes the place of the file of version 1";
        let both = async { tokio::try_join!(deploy, deploy_plain).map(drop) };
        step(server, screen, &loads, words, both).await?;

        let restart = async {
            let bus = Bus::open(&server.bus()).await.context("connect to D-Bus")?;
            match bus.job("RestartService", "shop").await?.as_str() {
                "done" => Ok(()),
                result => bail!("the restart ended with {result:?}"),
            }
        };
        let words = "restart: RestartService(\"shop\") through D-Bus";
        let both = async { tokio::try_join!(restart, plain.restart()).map(drop) };
        step(server, screen, &loads, words, both).await?;

        loads.phase("after");
        step(server, screen, &loads, "load alone again", quiet()).await?;
        Ok(loads.stop().await)
    }

    /// Ends everything that the demo has started.
    async fn stop(self) {
        self.plain.stop().await;
        self.server.stop().await;
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

/// Runs one step of the demo, and shows the instances meanwhile.
async fn step(
    server: &Smoothserve,
    screen: &mut Screen,
    loads: &Loads,
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
                if let Some(status) = server.status().await {
                    screen.draw(&status, [loads.smooth.counts(), loads.plain.counts()]);
                }
            }
        }
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

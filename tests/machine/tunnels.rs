//! WebSockets through an upgrade of smoothserve.

use smoothserve_kit::client::{Connection, Request};
use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::programs;
use smoothserve_kit::script::PYTHON;
use smoothserve_kit::websocket::{SERVICE, talk};

use crate::scene::{PORT, Scene};

fn start<'a>(machine: &'a Machine, lines: &str) -> Scene<'a> {
    let scene = Scene::install(machine, "");
    machine.write("/opt/echo.py", SERVICE);
    machine.write(
        "/etc/smoothserve/services/shop.yaml",
        &format!(
            "name: shop\nport: {PORT}\nexecutable_path: {PYTHON}\nargs: [/opt/echo.py]\ninstance_count: 2\n{lines}"
        ),
    );
    machine.run(
        "systemctl daemon-reload && systemctl enable --now smoothserve.socket smoothserve.service",
    );
    scene.settled();
    scene
}

#[test]
fn tunnels_outlive_their_worker_and_get_the_goodbye_of_their_instance() {
    machine::test(async |machine| {
        let scene = start(machine, "");
        let mut old = talk(PORT).await;
        let (worker, instances) = (scene.worker(), scene.shop().pids());
        machine.install_smoothserve(&programs!());
        machine.run("systemctl restart smoothserve");
        scene.worker_after(worker);
        // New tunnels go through the new worker, old ones stay with the old worker, and both are
        // counted.
        let mut new = talk(PORT).await;
        let count = |text: &str| {
            let status: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
            let instances = status["services"]["shop"]["instances"].as_array();
            let tunnels = instances.into_iter().flatten();
            tunnels
                .filter_map(|instance| instance["tunnels"].as_u64())
                .sum::<u64>()
        };
        machine.until("smoothctl status --json", |text| count(text) == 40);
        assert_eq!(scene.shop().pids(), instances);
        machine.run(&format!("ls /proc/{worker}"));
        machine.run("smoothctl restart shop");
        for tunnels in [&mut old, &mut new] {
            assert_eq!(tunnels.next().await, "[1001] 20");
        }
        // The old worker ends with its last tunnel.
        machine.until(&format!("ls /proc/{worker} || echo gone"), |text| {
            text == "gone\n"
        });
    });
}

/// Nobody can end the tunnels of the old worker but that worker itself. Connections between two
/// requests have more time.
#[test]
fn tunnels_have_their_time_when_the_worker_is_replaced() {
    machine::test(async |machine| {
        let scene = start(machine, "tunnel_drain_timeout: 1s\ndrain_timeout: 1s\n");
        let request = Request::get("/plain");
        let mut idle = Connection::open(scene.address(), "shop.example")
            .await
            .unwrap();
        assert!(!idle.exchange(&request).await.unwrap().head.closes());
        let mut tunnels = talk(PORT).await;
        machine.install_smoothserve(&programs!());
        machine.run("systemctl restart smoothserve");
        assert_eq!(tunnels.next().await, "[1006] 20");
        assert!(idle.exchange(&request).await.unwrap().head.closes());
    });
}

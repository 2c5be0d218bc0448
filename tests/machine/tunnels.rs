//! WebSockets through an upgrade of smoothserve.

use smoothserve_kit::machine;
use smoothserve_kit::programs;
use smoothserve_kit::script::PYTHON;
use smoothserve_kit::websocket::{SERVICE, talk};

use crate::scene::{PORT, Scene};

#[test]
fn tunnels_outlive_their_worker_and_get_the_goodbye_of_their_instance() {
    machine::test(async |machine| {
        let scene = Scene::install(machine, "");
        machine.write("/opt/echo.py", SERVICE);
        machine.write(
            "/etc/smoothserve/services/shop.yaml",
            &format!(
                "name: shop\nport: {PORT}\nexecutable_path: {PYTHON}\nargs: [/opt/echo.py]\ninstance_count: 2\n"
            ),
        );
        machine.run("systemctl daemon-reload && systemctl enable --now smoothserve.socket smoothserve.service");
        scene.settled();
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

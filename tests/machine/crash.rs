//! The manager is killed in the middle of a rollout, at one system call after the other. Whatever
//! the manager has just saved, stored, started or let go, the next manager continues from it.

use smoothserve_kit::{Status, machine};

use crate::scene::{Scene, nothing_is_lost};

/// The system calls by which the manager affects the world: it saves its state (rename), starts
/// processes (vfork, clone3), sends orders, descriptors and notifications (sendmsg, sendto), and
/// asks systemd (connect).
const CALLS: &str = "rename,vfork,clone,clone3,sendmsg,sendto,connect";

#[test]
fn a_rollout_goes_on_after_a_crash_between_any_two_steps() {
    machine::test(async |machine| {
        machine.write(
            "/etc/systemd/system/smoothserve.service.d/soon.conf",
            "[Service]\nRestartSec=0\n",
        );
        let scene = Scene::start(machine, "");
        let load = scene.load().await;
        let mut killed = 0;
        // In each round the rollout gets a little further.
        for call in (1..=120).step_by(4) {
            let (manager, before) = (scene.manager(), scene.settled());
            // strace kills the manager at the entry of this call, and ends with it.
            machine.run(&format!(
                "strace -qq -o /dev/null -e trace={CALLS} -e inject={CALLS}:signal=KILL:when={call} -p {manager} >/dev/null 2>&1 & \
                 until ! [ -e /proc/{manager} ] || grep -q 'TracerPid:\\s*[1-9]' /proc/{manager}/status; do :; done; \
                 smoothctl restart --no-block shop; true"
            ));
            machine.until("smoothctl status --json", |text| {
                serde_json::from_str(text).is_ok_and(|status: Status| {
                    let shop = &status.services["shop"];
                    status.settled()
                        && shop.state == "running"
                        && shop.generation >= before.generation
                })
            });
            machine.run("pkill strace; true");
            scene.settled();
            let shop = scene.shop();
            assert_eq!(
                (shop.ready(), shop.instances.len()),
                (3, 3),
                "call {call}: {shop:#?}"
            );
            assert_eq!(shop.crashes, 0, "call {call}: {shop:#?}");
            let shops = machine.run("pgrep -cx shop");
            assert_eq!(
                shops.trim(),
                "3",
                "call {call}: a process that nobody knows"
            );
            if scene.manager() != manager {
                killed += 1;
            }
        }
        assert!(killed > 20, "only {killed} managers were killed");
        nothing_is_lost(load).await;
        let state = machine.run("systemctl is-system-running; true");
        assert_eq!(state.trim(), "running");
    });
}

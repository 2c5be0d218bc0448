//! TLS on the port of https, whose key only root can read.

use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::node;
use smoothserve_kit::programs;

use crate::scene::{Scene, nothing_is_lost};

const HTTPS: u16 = 443;

/// Where the certificate in use is, and where all are that clients believe.
const LIVE: &str = "/etc/shop-tls";
const AUTHORITY: &str = "/etc/authority.pem";

/// Puts a new certificate, and its key, in the place of those that are there.
fn renew(machine: &Machine) {
    machine.run(&format!(
        "mkdir -p {LIVE} && cd {LIVE} && umask 077 \
         && openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=test -days 100 \
            -addext subjectAltName=DNS:shop.example -keyout privkey.pem -out fullchain.pem 2>/dev/null \
         && cat fullchain.pem >>{AUTHORITY}"
    ));
}

/// The certificate that is shown.
fn shown(machine: &Machine) -> String {
    machine.run(&format!(
        "openssl s_client -connect 127.0.0.1:{HTTPS} -servername shop.example </dev/null 2>/dev/null \
         | openssl x509 -noout -fingerprint"
    ))
}

fn installed(machine: &Machine) -> String {
    machine.run(&format!(
        "openssl x509 -noout -fingerprint -in {LIVE}/fullchain.pem"
    ))
}

#[test]
fn renewals_restarts_and_upgrades_lose_nothing_over_tls() {
    machine::test(async |machine| {
        // Both are believed from the beginning.
        renew(machine);
        machine.run(&format!("mkdir /srv/old && cp {LIVE}/* /srv/old"));
        renew(machine);
        let lines = format!("tls: {{certificate: {LIVE}}}\n");
        let scene = Scene::start(machine, &lines);
        let sockets = machine.run("systemctl list-sockets --no-pager");
        assert!(sockets.contains("[::]:443 "), "{sockets}");
        assert_eq!(shown(machine), installed(machine));
        // Whoever faces the network cannot read the key.
        let key = format!("{LIVE}/privkey.pem");
        assert_eq!(machine.run(&format!("stat -c '%a %U' {key}")), "600 root\n");
        let worker = scene.worker();
        let user = machine.run(&format!("ps -o user= -p {worker}"));
        assert_eq!(user.trim(), "smoothserve");

        let authority = machine.path(AUTHORITY);
        let plain = scene.load().await;
        let mut loads = Vec::new();
        for mode in ["h2", "https"] {
            loads.push(node::load(mode, HTTPS, &authority, &[]).await);
        }
        let instances = scene.shop().pids();
        machine.run(&format!(
            "cp /srv/old/* {LIVE} && systemctl reload smoothserve"
        ));
        assert_eq!(shown(machine), installed(machine));
        assert_eq!(scene.shop().pids(), instances);
        machine.run("systemctl restart smoothserve");
        assert_eq!(shown(machine), installed(machine));
        let h2 = loads.remove(0);
        // An idle connection of HTTP/1.1 that a client uses at the moment when it is closed is its own to open again, and
        // Node does not. HTTP/2 has words for that.
        node::nothing_is_lost(loads.remove(0)).await;
        machine.install_smoothserve(&programs!());
        machine.run("systemctl restart smoothserve");
        machine.until(&format!("ls /proc/{worker} || echo gone"), |text| {
            text == "gone\n"
        });
        assert_eq!(shown(machine), installed(machine));
        node::nothing_is_lost(h2).await;
        machine.run("smoothctl restart shop");
        nothing_is_lost(plain).await;
    });
}

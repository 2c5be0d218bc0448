//! TLS on port 443, with a key that only root can read.

use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::node;
use smoothserve_kit::programs;

use crate::scene::{Scene, nothing_is_lost};

const HTTPS: u16 = 443;

/// The folder of the certificate in use, and the file of all certificates that the clients trust.
const LIVE: &str = "/etc/shop-tls";
const AUTHORITY: &str = "/etc/authority.pem";

/// Makes a new certificate and key in the place of the old ones.
fn renew(machine: &Machine) {
    machine.run(&format!(
        "mkdir -p {LIVE} && cd {LIVE} && umask 077 \
         && openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=test -days 100 \
            -addext subjectAltName=DNS:shop.example -keyout privkey.pem -out fullchain.pem 2>/dev/null \
         && cat fullchain.pem >>{AUTHORITY}"
    ));
}

/// Returns the fingerprint of the certificate that smoothserve presents.
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
        // The clients trust both certificates from the beginning.
        renew(machine);
        machine.run(&format!("mkdir /srv/old && cp {LIVE}/* /srv/old"));
        renew(machine);
        let lines = format!("tls: {{certificate: {LIVE}}}\n");
        let scene = Scene::start(machine, &lines);
        let sockets = machine.run("systemctl list-sockets --no-pager");
        assert!(sockets.contains("[::]:443 "), "{sockets}");
        assert_eq!(shown(machine), installed(machine));
        // The worker, which faces the network, cannot read the key.
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
        // The next step may close an idle HTTP/1.1 connection just as Node uses it, and Node does
        // not reconnect by itself. In HTTP/2 a GOAWAY avoids that.
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

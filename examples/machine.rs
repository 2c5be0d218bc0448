//! `make machine`: a shell on a test machine with a real systemd, smoothserve and the example
//! service.

use smoothserve_kit::Programs;
use smoothserve_kit::machine::Machine;

fn main() {
    let machine = Machine::boot();
    let programs = Programs::beside_examples();
    machine.install_smoothserve(&programs);
    let shop = programs.smoothserve.with_file_name("examples").join("shop");
    machine.add_shop(&shop, "port: 8080\ninstance_count: 3\n");
    machine.run("systemctl daemon-reload && systemctl enable --now smoothserve.socket smoothserve");
    println!(
        "a test machine; try: systemctl status smoothserve, smoothctl, curl localhost:8080, journalctl -f"
    );
    let shell = machine
        .command("bash")
        .stdin(std::process::Stdio::inherit())
        .status();
    shell.expect("bash can be started");
}

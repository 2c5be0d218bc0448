//! The test machine itself: a real systemd, isolated from the host and from other machines.

use smoothserve_kit::machine::{self, Machine};
use smoothserve_kit::processes::Process;

#[test]
fn a_machine_is_a_real_systemd_of_its_own() {
    machine::test(async |one| {
        assert_eq!(one.run("ps -o comm= -p 1").trim(), "systemd");
        one.write("/etc/only-here", "yes");
        assert!(!std::path::Path::new("/etc/only-here").exists());
        one.run("systemd-run --unit=sleeper sleep 1000");
        let other = Machine::boot();
        let sleeper = other.try_run("systemctl is-active sleeper");
        assert!(
            !sleeper.status.success(),
            "two machines have nothing in common"
        );
        let first = other.first_process();
        drop(other);
        assert!(Process::of(first).is_none(), "nothing of it is left");
        let kernel = one.try_run("echo 1 >/proc/sys/kernel/sysrq");
        assert!(!kernel.status.success(), "the kernel is not the machine's");
        assert_eq!(one.run("systemctl is-active sleeper").trim(), "active");
        one.run("logger -t someone 'a line for the journal' && journalctl --sync");
        assert!(one.journal().contains("a line for the journal"));
        // The test runs in the network namespace of the machine.
        assert!(tokio::net::TcpListener::bind("127.0.0.1:80").await.is_ok());
    });
}

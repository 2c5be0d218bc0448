//! The smoothserve binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let get = |name: &str| arguments.iter().skip_while(|a| *a != name).nth(1).cloned();
    let result: Result<(), String> = match arguments[0].as_str() {
        "proxy" => smoothserve::proxy::run(&smoothserve::proxy::Options {
            threads: None,
            die_with_parent: true,
        })
        .map_err(|e| e.to_string()),
        "launch" => smoothserve::launch::run().map_err(|e| format!("{e:#}")),
        _ => smoothserve::manager::run(smoothserve::manager::Options {
            config_dir: get("--config").unwrap().into(),
            run_dir: get("--run-dir").unwrap().into(),
            bus: smoothserve::manager::dbus::Bus::Auto,
        })
        .map_err(|e| format!("{e:#}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

//! The `kiln` command.

mod args;
mod commands;
mod diff;
mod draw;
mod inspect;
mod model;
mod output;
mod quantize;
mod reduce;
mod suite;
mod verify;
mod weights;

use args::Cli;
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Worker processes: this executable again, before anything else is set up.
    if std::env::args().nth(1).as_deref() == Some(kiln::compile::objects::WORKER) {
        let abort_on = std::env::var("KILN_TEST_ABORT_KERNEL").ok();
        return match kiln::compile::objects::worker(abort_on.as_deref()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{e}");
                ExitCode::FAILURE
            }
        };
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are answers, not errors.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 64 } else { 0 });
        }
    };
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let exit = failure.exit;
            if std::env::args().any(|a| a == "--json") {
                output::outln!("{}", failure.json());
            }
            if std::io::stderr().is_terminal() {
                eprintln!("{:?}", failure.report());
            } else {
                eprintln!("{}", failure.render());
            }
            ExitCode::from(exit)
        }
    }
}

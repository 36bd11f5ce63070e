//! `kiln-rt`: runs artifacts. The runtime alone, without the compiler.

use kiln_runtime::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(std::env::args_os().skip(1).collect())
}

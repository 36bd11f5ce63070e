//! Kernels for a check on hardware: PTX for each target and a description of every kernel,
//! which `scripts/gpu_check.py` fills, launches, compares and times without Kiln.
//!
//! `gpu_kernels write FOLDER` writes `kernels.json` and `kernels.TARGET.ptx`;
//! `gpu_kernels sim FOLDER TARGET DATA` launches what these files describe on the PTX
//! interpreter, over the buffers in DATA. The second reads nothing but the files.
//! `gpu_kernels predict` prints what `kernels/src/cuda/cost.rs` predicts of those that are
//! timed, to be held against what a chip takes.

mod attention;
mod blocks;
mod case;
mod convolutions;
mod nests;
mod products;
mod sim;

use case::{Case, TARGETS, description};
use kiln_codegen::GpuTarget;
use kiln_kernels::cuda;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["write", folder] => write(Path::new(folder)),
        ["predict"] => predict(),
        ["sim", folder, target, data] => sim::run(Path::new(folder), target, Path::new(data)),
        _ => {
            eprintln!(
                "usage: gpu_kernels write FOLDER | gpu_kernels sim FOLDER TARGET DATA | gpu_kernels predict"
            );
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Every kernel of the check.
fn cases() -> Vec<Case> {
    let mut all = products::cases();
    all.extend(blocks::cases());
    all.extend(attention::cases());
    all.extend(convolutions::cases());
    all.extend(nests::cases());
    all
}

fn predict() -> Result<String, String> {
    let (mut cases, mut chips) = (cases(), serde_json::Map::new());
    cases.retain(|c| c.purpose == "speed");
    for name in TARGETS {
        let target = GpuTarget::named(name).ok_or(format!("no target {name}"))?;
        chips.insert(name.into(), target.chip.clone().into());
        for case in &mut cases {
            case.emit(&target)?;
        }
    }
    let kernels: Vec<_> = cases.iter().map(Case::prediction).collect();
    let whole = serde_json::json!({"chips": chips, "kernels": kernels});
    serde_json::to_string_pretty(&whole).map_err(|e| e.to_string())
}

fn write(folder: &Path) -> Result<String, String> {
    let mut cases = cases();
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let put = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
    };
    for name in TARGETS {
        let target = GpuTarget::named(name).ok_or(format!("no target {name}"))?;
        let mut kernels = vec![];
        for case in &mut cases {
            kernels.push(case.emit(&target)?);
        }
        put(
            &format!("kernels.{name}.ptx"),
            &cuda::module(&kernels, &target),
        )?;
    }
    put("kernels.json", &description(&cases))?;
    let speed = cases.iter().filter(|c| c.purpose == "speed").count();
    Ok(format!(
        "{} kernels to check and {speed} to time, for {}",
        cases.len() - speed,
        TARGETS.join(" and ")
    ))
}

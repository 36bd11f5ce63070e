//! Passes against the interpreter.

mod filetests;
mod random;
mod regressions;

use kiln_ir::Module;
use kiln_passes::{Manager, Options, Precision, pipeline};

/// Runs one pass, or the whole pipeline (`compile`), verifying after each; after a
/// colon, for what precision, or `columns` for how weights lie where GPUs alone read them.
fn pass(name: &str, module: &mut Module) -> Result<(), String> {
    let (name, precision) = name.split_once(':').unwrap_or((name, "f32"));
    let (precision, panels) = match precision {
        "columns" => (Some(Precision::F32), false),
        name => (Precision::from_name(name), true),
    };
    let options = Options {
        precision: precision.ok_or("there is no such precision")?,
        panels,
        ..Options::default()
    };
    let passes = match name {
        "compile" => pipeline::COMPILE.to_vec(),
        _ => vec![pipeline::by_name(name).ok_or("there is no such pass")?],
    };
    let mut manager = Manager {
        verify: true,
        ..Manager::default()
    };
    let done = manager.run(&passes, module, &options);
    done.map(|_| ()).map_err(|e| e.to_string())
}

//! What fuzzing the importers found, and the seeds: `fuzz/README.md`.

#[path = "../../../fuzz/src/onnx.rs"]
mod onnx;
#[path = "../../../fuzz/src/safetensors.rs"]
mod safetensors;

use crate::support::root;

/// Runs a check on every file of a target's folders; how many there are.
fn replay(target: &str, check: fn(&[u8])) -> usize {
    let mut count = 0;
    for folder in ["regressions", "seeds"] {
        // A target without findings has no folder of them.
        let entries = std::fs::read_dir(root().join("fuzz").join(folder).join(target));
        for entry in entries.into_iter().flatten() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            check(&std::fs::read(path).unwrap());
            count += 1;
        }
    }
    count
}

#[test]
fn what_fuzzing_onnx_found_stays_fixed() {
    assert!(replay("onnx", onnx::check) >= 300);
}

#[test]
fn what_fuzzing_safetensors_found_stays_fixed() {
    assert!(replay("safetensors", safetensors::check) >= 4);
}

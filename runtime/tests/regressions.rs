//! What fuzzing artifacts found, and the seeds: `fuzz/README.md`.

#[path = "../../fuzz/src/artifact.rs"]
mod artifact;

use kiln_ir::Binding;
use kiln_runtime::{Artifact, Model};
use std::path::{Path, PathBuf};

fn files(folder: &str) -> Vec<PathBuf> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let entries = std::fs::read_dir(fuzz.join(folder)).unwrap();
    entries.map(|e| e.unwrap().path()).collect()
}

#[test]
fn what_fuzzing_found_stays_fixed() {
    let seeds = files("seeds/artifact");
    assert!(seeds.len() >= 5, "only {} seeds", seeds.len());
    for path in seeds.into_iter().chain(files("regressions/artifact")) {
        println!("{}", path.display());
        artifact::check(&std::fs::read(path).unwrap());
    }
}

/// The seeds are whole: a check that gave up on each would find nothing.
#[test]
fn seeds_load_and_a_change_behind_their_hashes_is_loaded_too() {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return;
    }
    for path in files("seeds/artifact") {
        let mut bytes = std::fs::read(&path).unwrap();
        let load = |bytes: &[u8]| Model::from_artifact(Artifact::from_bytes("seed", bytes)?);
        let model = load(&bytes).unwrap();
        let sizes: Binding = ["B", "b", "n"].map(|s| (s.into(), 2)).into();
        model.predict_memory(0, &sizes, 2, None).unwrap();
        for gpu in 0..model.program().gpu.len() {
            let m = model.predict_memory(0, &sizes, 2, Some(gpu)).unwrap();
            assert!(m.device.unwrap().total > 0);
        }
        // A name in the plan: the file is another one, and sound once sealed.
        let name = model.program().entries[0].name.as_bytes().to_vec();
        let quoted = [b"\"".as_slice(), &name, b"\""].concat();
        let at = bytes
            .windows(quoted.len())
            .rposition(|w| w == quoted)
            .unwrap()
            + 1;
        bytes[at] = b'Q';
        assert!(load(&bytes).is_err(), "{}", path.display());
        artifact::reseal(&mut bytes).unwrap();
        let other = load(&bytes).unwrap();
        assert!(other.program().entries[0].name.starts_with('Q'));
    }
}

#[test]
fn weights_lie_where_kernels_can_read_them() {
    let path = files("seeds/artifact")
        .into_iter()
        .find(|p| p.ends_with("interp-state.artifact"));
    let whole = std::fs::read(path.unwrap()).unwrap();
    let load = |mut bytes: Vec<u8>| {
        artifact::reseal(&mut bytes).unwrap();
        let error = Artifact::from_bytes("seed", &bytes)
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.code, "K0703");
        error.message
    };
    // One byte more than the section has.
    let mut longer = whole.clone();
    let at = longer
        .windows(10)
        .position(|w| w == b"\"bytes\":16")
        .unwrap();
    longer[at + 9] = b'7';
    assert!(load(longer).contains("@t has 16 bytes, not 17"));
    // The last section starts one byte later.
    let mut shifted = whole;
    let row = shifted.len() - 24;
    (shifted[row], shifted[row + 8]) = (shifted[row] + 1, shifted[row + 8] - 1);
    assert!(load(shifted).contains("multiple of 64"));
}

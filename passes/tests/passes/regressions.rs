//! What fuzzing the text form found, and its seeds: `fuzz/README.md`.

#[path = "../../../fuzz/src/kir.rs"]
mod kir;

use std::path::Path;

#[test]
fn what_fuzzing_found_stays_fixed() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let (mut count, mut ran) = (0, 0);
    for folder in ["regressions/kir", "seeds/kir"] {
        for entry in std::fs::read_dir(fuzz.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            let text = std::fs::read_to_string(path).unwrap();
            ran += usize::from(kir::check(&text));
            count += 1;
        }
    }
    assert!(count >= 40 && ran >= 20, "{ran} of {count} files ran");
}

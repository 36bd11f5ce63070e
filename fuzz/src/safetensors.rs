//! The check of safetensors files: tensors lie one behind the other inside the
//! file, with the bytes that their shapes ask for; other files say what is wrong.

use kiln_import::Diagnostic;
use kiln_import::safetensors::SafeTensors;

/// Checks everything that must hold of a file, whatever it holds.
pub fn check(file: &[u8]) {
    match SafeTensors::from_bytes("fuzzed.safetensors", file.to_vec()) {
        Ok(tensors) => are_sound(file, &tensors),
        Err(e) => is_whole(&e),
    }
}

fn are_sound(file: &[u8], tensors: &SafeTensors) {
    let header = u64::from_le_bytes(file[..8].try_into().expect("it has a header"));
    let mut at = 8 + header as usize;
    for e in tensors.entries() {
        assert_eq!(e.range.start, at, "a gap or an overlap before {e:?}");
        at = e.range.end;
        assert_eq!(tensors.get(&e.name), Some(e), "two have this name");
        let tensor = tensors.tensor(e).expect("a listed tensor is there");
        assert_eq!((tensor.dtype(), tensor.shape()), (e.dtype, &e.shape[..]));
        let bits = e.shape.iter().product::<usize>() * e.dtype.bits();
        assert_eq!(
            (bits, tensor.bytes().len()),
            (e.range.len() * 8, e.range.len())
        );
        let same = tensor.bytes() == &file[e.range.clone()];
        assert!(
            same || e.dtype == kiln_ir::DType::Bool,
            "other bytes: {e:?}"
        );
    }
    assert_eq!(at, file.len(), "bytes after the last tensor");
}

fn is_whole(d: &Diagnostic) {
    let known = ["K0121", "K0150", "K0151", "K0152", "K0153", "K0154"];
    assert!(known.contains(&d.code) && !d.message.is_empty(), "{d:?}");
    assert!(!d.place.file.is_empty() && !d.help.is_empty(), "{d:?}");
}

//! Changes to safetensors files that keep the header's length right.

use crate::json;
use crate::random::Random;
use libfuzzer_sys::fuzzer_mutate;

/// libFuzzer's custom mutator.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut r = Random::new(seed);
    let file = &data[..size];
    let Some((mut header, tensors)) = split(file).filter(|_| !r.once_in(6)) else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..1 + r.below(3) {
        json::change(&mut header, &mut r, &TEXTS);
    }
    let text = header.to_string();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(tensors);
    match r.below(8) {
        0 => out.extend([0; 4]),
        1 => drop(out.pop()),
        _ => {}
    }
    if out.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..out.len()].copy_from_slice(&out);
    out.len()
}

const TEXTS: [&str; 24] = [
    "F32",
    "F16",
    "BF16",
    "F64",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "U16",
    "U32",
    "U64",
    "BOOL",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "C64",
    "F8_E4M3FNUZ",
    "",
    "f32",
    "pt",
];

fn split(file: &[u8]) -> Option<(serde_json::Value, &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let header = serde_json::from_slice(rest.get(..length)?).ok()?;
    Some((header, &rest[length..]))
}

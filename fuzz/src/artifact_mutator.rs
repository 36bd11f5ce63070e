//! Changes to artifacts that go behind their hashes: one section is changed (the
//! plan as JSON, machine code as bytes) and the file put together again.

use crate::artifact::{reseal, sections};
use crate::json;
use crate::random::Random;
use libfuzzer_sys::fuzzer_mutate;

const HEADER: usize = 64;

/// libFuzzer's custom mutator.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut r = Random::new(seed);
    let whole = sections(&data[..size]).filter(|s| !s.is_empty() && !r.once_in(10));
    let Some(ranges) = whole else {
        return fuzzer_mutate(data, size, max_size);
    };
    let mut parts: Vec<Vec<u8>> = ranges.into_iter().map(|s| data[s].to_vec()).collect();
    // The plan is section 0, and most of what is checked.
    let at = if r.once_in(4) {
        r.below(parts.len())
    } else {
        0
    };
    if at > 0 || r.once_in(20) {
        change_bytes(&mut parts[at]);
    } else if let Ok(mut plan) = serde_json::from_slice(&parts[0]) {
        for _ in 0..1 + r.below(3) {
            json::change(&mut plan, &mut r, &TEXTS);
        }
        parts[0] = plan.to_string().into_bytes();
    }
    let file = assemble(&parts);
    if file.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..file.len()].copy_from_slice(&file);
    file.len()
}

/// Sizes, names and types that a plan may hold.
const TEXTS: [&str; 16] = [
    "a",
    "n",
    "",
    "a + 1",
    "a*n",
    "a*a*a*a",
    "0 - a",
    "(a + 15) / 16",
    "max(a, n)",
    "min(a, 4) - 9",
    "9223372036854775807*a",
    "a / (n - 1)",
    "f32",
    "i4",
    "str",
    "Output",
];

fn change_bytes(part: &mut Vec<u8>) {
    let size = part.len();
    part.resize(size + 64, 0);
    let changed = fuzzer_mutate(part, size, size + 64);
    part.truncate(changed);
}

/// A file of these sections, the first of them last, as the compiler writes it.
fn assemble(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut file = vec![0; HEADER];
    let mut rows = vec![(0, 0); parts.len()];
    for i in (1..parts.len()).chain([0]) {
        file.resize(file.len().next_multiple_of(64), 0);
        rows[i] = (file.len() as u64, parts[i].len() as u64);
        file.extend_from_slice(&parts[i]);
    }
    file.resize(file.len().next_multiple_of(64), 0);
    let table = file.len() as u64;
    for (at, len) in rows {
        file.extend([at, len, 0].iter().flat_map(|v: &u64| v.to_le_bytes()));
    }
    file[..8].copy_from_slice(b"KILNART\0");
    file[8..12].copy_from_slice(&kiln_runtime::artifact::FORMAT_VERSION.to_le_bytes());
    file[12..16].copy_from_slice(&(parts.len() as u32).to_le_bytes());
    file[16..24].copy_from_slice(&table.to_le_bytes());
    // It has a place for every hash.
    let _ = reseal(&mut file);
    file
}

//! The text form: parsed, verified, printed, parsed again; small modules are run
//! before and after the passes.

#![no_main]

use kiln_fuzz::limit::Limited;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ran = kiln_fuzz::kir::check(text);
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    kiln_fuzz::kir_mutator::mutate(data, size, max_size, seed)
});

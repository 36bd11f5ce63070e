//! Artifacts from bytes: opened, their code loaded and never run, their memory
//! predicted at several sizes.

#![no_main]

use kiln_fuzz::limit::Limited;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| {
    kiln_fuzz::artifact::check(data);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    kiln_fuzz::artifact_mutator::mutate(data, size, max_size, seed)
});

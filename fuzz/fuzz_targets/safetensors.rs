//! Safetensors files from bytes: the header checked, every tensor handed out.

#![no_main]

use kiln_fuzz::limit::Limited;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|data: &[u8]| {
    kiln_fuzz::safetensors::check(data);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    kiln_fuzz::safetensors_mutator::mutate(data, size, max_size, seed)
});

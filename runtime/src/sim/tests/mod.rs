//! Kernels of PTX text that are run, and what they must give.

mod hopper;
mod planted;
mod probes;
mod rate;
mod scalar;
mod spaces;
mod types;
mod warp;

use super::{Fault, Launch, Memory, Module, Report, launch};

/// A module of one kernel `k` for `target`: parameters as they are written, a body.
pub fn text(target: &str, params: &str, body: &str) -> String {
    format!(
        ".version 8.4\n.target {target}\n.address_size 64\n\
         .visible .entry k({params})\n{{\n{body}\n}}\n"
    )
}

/// Buffers on a simulated device, whose addresses are the parameters of a kernel.
#[derive(Default)]
pub struct Device {
    pub memory: Memory,
    pub params: Vec<u8>,
}

impl Device {
    /// A buffer with these bytes, as the next parameter.
    pub fn buffer(&mut self, bytes: &[u8]) -> u64 {
        let at = self.room(bytes.len());
        self.memory.write(at, bytes).unwrap();
        at
    }

    /// A buffer that nothing has written, as the next parameter.
    pub fn room(&mut self, bytes: usize) -> u64 {
        let at = self.memory.alloc(bytes);
        self.params.extend(at.to_le_bytes());
        at
    }

    /// Runs the text's kernel.
    pub fn run(&mut self, ptx: &str, how: &Launch) -> Result<Report, Box<Fault>> {
        keep(ptx);
        let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
        let kernel = module.kernels().next().unwrap();
        launch(&module, &mut self.memory, kernel, how, &self.params)
    }

    /// Words of a buffer.
    pub fn words(&self, at: u64, n: usize) -> Vec<u32> {
        let mut bytes = vec![0; n * 4];
        self.memory.read(at, &mut bytes).unwrap();
        bytes
            .chunks(4)
            .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    }

    /// Numbers of a buffer.
    pub fn floats(&self, at: u64, n: usize) -> Vec<f32> {
        self.words(at, n).into_iter().map(f32::from_bits).collect()
    }
}

/// Writes the text to the folder that KILN_PTX_DIR names, for `scripts/ptx_check.sh`.
fn keep(ptx: &str) {
    use std::hash::{DefaultHasher, Hash, Hasher};
    if let Ok(folder) = std::env::var("KILN_PTX_DIR") {
        let mut hasher = DefaultHasher::new();
        ptx.hash(&mut hasher);
        std::fs::write(format!("{folder}/{:016x}.ptx", hasher.finish()), ptx).unwrap();
    }
}

/// The bytes of words.
pub fn bytes(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A launch of `blocks` blocks of `threads` threads.
pub fn blocks(blocks: u32, threads: u32) -> Launch {
    Launch {
        grid: [blocks, 1, 1],
        block: [threads, 1, 1],
        threads: 2,
        ..Launch::default()
    }
}

/// Reproducible words.
pub fn random(seed: u64) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as u32
    }
}

/// Small integers as bf16: their products and sums are exact.
pub fn small(seed: u64, n: usize) -> Vec<f32> {
    let mut next = random(seed);
    (0..n).map(|_| (next() % 9) as f32 - 4.0).collect()
}

/// The bytes of bf16 numbers that are exact.
pub fn bf16(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes())
        .collect()
}

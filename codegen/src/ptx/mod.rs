//! A typed builder of PTX, the one way to GPU code.
//!
//! Registers have types ([`Reg`]), instructions are methods that take operands of these
//! types, control flow is closures: what the builder writes, ptxas accepts. Registers
//! are variables, so accumulators are updated in place. Nothing optimises the text but
//! ptxas.
//!
//! Sums and products carry their rounding (`add.rn`), so that no compiler fuses them, and
//! no instruction flushes subnormals: results are the CPU's bit for bit where both run
//! the same operations in the same order.

mod alu;
mod control;
mod hopper;
mod matrix;
mod memory;
mod reg;

pub use alu::{Fn1, Order, Rounding};
pub use control::Shuffle;
pub use matrix::{Byte, Eight, Floats, Half, Sum};
pub use memory::{Address, Space, Vector};
pub use reg::{Arith, B16, B32, B64, F32, F64, Float, Int, Pred, Reg, Src, Type};

use crate::GpuTarget;
use std::fmt::{self, Write};
use std::marker::PhantomData;

/// A parameter of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Param {
    /// An address or an i64.
    Word,
    /// A tensor map: 128 bytes, aligned to 64.
    TensorMap,
}

/// Shared memory that a kernel declares.
#[derive(Clone, Debug)]
struct Shared {
    name: String,
    bytes: u32,
    align: u32,
}

/// Builds one `.entry`.
pub struct Kernel {
    name: String,
    target: GpuTarget,
    threads: u32,
    resident: Option<u32>,
    params: Vec<Param>,
    shared: Vec<Shared>,
    body: String,
    depth: usize,
    counts: [u32; 6],
    labels: u32,
    /// The guard of the instructions that are written now.
    guard: Option<String>,
}

impl Kernel {
    /// A kernel of this name for blocks of `threads` threads.
    pub fn new(name: &str, target: &GpuTarget, threads: u32) -> Kernel {
        Kernel {
            name: name.to_string(),
            target: target.clone(),
            threads,
            resident: None,
            params: vec![],
            shared: vec![],
            body: String::new(),
            depth: 1,
            counts: [0; 6],
            labels: 0,
            guard: None,
        }
    }

    /// What it is built for.
    pub fn target(&self) -> &GpuTarget {
        &self.target
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Blocks that a multiprocessor holds at once at least: threads get as many registers as
    /// that leaves, where ptxas would guess, and spill for its guess.
    pub fn set_resident(&mut self, blocks: u32) {
        self.resident = Some(blocks);
    }

    /// A register that nothing has written.
    pub fn reg<T: Type>(&mut self) -> Reg<T> {
        self.counts[T::CLASS] += 1;
        Reg {
            number: self.counts[T::CLASS],
            of: PhantomData,
        }
    }

    /// The next parameter: an address or an i64.
    pub fn param(&mut self) -> Reg<B64> {
        let n = self.params.len();
        self.params.push(Param::Word);
        let to = self.reg();
        self.line(format_args!("ld.param.u64 {to}, [p{n}]"));
        to
    }

    /// The address of the next parameter, a tensor map of 128 bytes.
    pub fn tensor_map(&mut self) -> Reg<B64> {
        let n = self.params.len();
        self.params.push(Param::TensorMap);
        let at = self.reg::<B64>();
        self.line(format_args!("mov.b64 {at}, p{n}"));
        let to = self.reg();
        self.line(format_args!("cvta.param.u64 {to}, {at}"));
        to
    }

    /// The address in shared memory of `bytes` bytes of its own, aligned to `align`.
    pub fn shared(&mut self, bytes: u32, align: u32) -> Reg<B32> {
        let name = format!("s{}", self.shared.len());
        let to = self.reg();
        self.line(format_args!("mov.u32 {to}, {name}"));
        self.shared.push(Shared { name, bytes, align });
        to
    }

    /// The address of the shared memory that a launch adds, aligned to 1024.
    pub fn dynamic_shared(&mut self) -> Reg<B32> {
        let to = self.reg();
        self.line(format_args!("mov.u32 {to}, dynamic"));
        to
    }

    /// Bytes of shared memory that it declares.
    pub fn static_shared(&self) -> u32 {
        let end = |at: u32, s: &Shared| at.next_multiple_of(s.align) + s.bytes;
        self.shared.iter().fold(0, end)
    }

    /// The entry's text, to stand in a module of its target.
    pub fn finish(mut self) -> String {
        self.line(format_args!("ret"));
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, ".visible .entry {}(", self.name)?;
        for (i, p) in self.params.iter().enumerate() {
            let comma = if i + 1 < self.params.len() { "," } else { "" };
            match p {
                Param::Word => writeln!(out, "    .param .u64 p{i}{comma}")?,
                Param::TensorMap => writeln!(out, "    .param .align 64 .b8 p{i}[128]{comma}")?,
            }
        }
        writeln!(out, ")\n.maxntid {}, 1, 1", self.threads)?;
        if let Some(blocks) = self.resident {
            writeln!(out, ".minnctapersm {blocks}")?;
        }
        writeln!(out, "{{")?;
        for (class, (letter, register)) in reg::CLASSES.iter().enumerate() {
            if self.counts[class] > 0 {
                let n = self.counts[class] + 1;
                writeln!(out, "    .reg {register} %{letter}<{n}>;")?;
            }
        }
        for s in &self.shared {
            let Shared { name, bytes, align } = s;
            writeln!(out, "    .shared .align {align} .b8 {name}[{bytes}];")?;
        }
        writeln!(out, "{}}}", self.body)
    }

    fn line(&mut self, args: fmt::Arguments<'_>) {
        let indent = 4 * self.depth;
        let guard = match &self.guard {
            Some(g) => format!("@{g} "),
            None => String::new(),
        };
        // Writing to a String does not fail.
        let _ = writeln!(self.body, "{:indent$}{guard}{args};", "");
    }
}

/// A module of entries: their text under one header.
pub fn module<'a>(entries: impl IntoIterator<Item = &'a str>, target: &GpuTarget) -> String {
    let (major, minor) = target.ptx;
    let mut text = format!(
        ".version {major}.{minor}\n.target {}\n.address_size 64\n\n.extern .shared .align 1024 .b8 dynamic[];\n",
        target.name
    );
    for entry in entries {
        text.push('\n');
        text.push_str(entry);
    }
    text
}

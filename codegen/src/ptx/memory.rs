//! Loads, stores and atomics.

use super::Kernel;
use super::reg::{B16, B32, B64, F32, F64, Reg, Src, Type};

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Device memory; addresses are 64 bits.
    Global,
    /// Device memory that nothing writes while the kernel runs.
    ReadOnly,
    /// The block's own memory; addresses are 32 bits.
    Shared,
}

/// Runs of elements that one instruction moves.
pub trait Vector: Type {
    /// Suffix of loads and stores.
    const MEMORY: &'static str;
}

impl Vector for B32 {
    const MEMORY: &'static str = ".b32";
}

impl Vector for B64 {
    const MEMORY: &'static str = ".b64";
}

impl Vector for F32 {
    const MEMORY: &'static str = ".f32";
}

impl Vector for F64 {
    const MEMORY: &'static str = ".f64";
}

impl Vector for B16 {
    const MEMORY: &'static str = ".b16";
}

/// An address: of global memory or of shared memory.
pub trait Address: Type {}

impl Address for B32 {}
impl Address for B64 {}

impl Space {
    fn load(self) -> &'static str {
        match self {
            Space::Global => ".global",
            Space::ReadOnly => ".global.nc",
            Space::Shared => ".shared",
        }
    }

    fn store(self) -> &'static str {
        match self {
            Space::Global | Space::ReadOnly => ".global",
            Space::Shared => ".shared",
        }
    }
}

fn list<T: Type>(xs: &[Reg<T>]) -> String {
    let names: Vec<String> = xs.iter().map(Reg::to_string).collect();
    match xs {
        [one] => one.to_string(),
        _ => format!("{{{}}}", names.join(", ")),
    }
}

fn vector(n: usize) -> &'static str {
    match n {
        1 => "",
        2 => ".v2",
        4 => ".v4",
        _ => unreachable!("runs are of 1, 2 or 4"),
    }
}

impl Kernel {
    /// Reads `n` neighbouring elements (1, 2 or 4), at a multiple of all their bytes.
    pub fn load<T: Vector, A: Address>(
        &mut self,
        space: Space,
        at: Reg<A>,
        offset: i64,
        n: usize,
    ) -> Vec<Reg<T>> {
        let to: Vec<Reg<T>> = (0..n).map(|_| self.reg()).collect();
        self.load_to(space, at, offset, &to);
        to
    }

    /// The same, into registers.
    pub fn load_to<T: Vector, A: Address>(
        &mut self,
        space: Space,
        at: Reg<A>,
        offset: i64,
        to: &[Reg<T>],
    ) {
        let (v, list) = (vector(to.len()), list(to));
        let (space, t) = (space.load(), T::MEMORY);
        self.line(format_args!("ld{space}{v}{t} {list}, [{at}+{offset}]"));
    }

    /// Writes neighbouring elements (1, 2 or 4), at a multiple of all their bytes.
    pub fn store<T: Vector, A: Address>(
        &mut self,
        space: Space,
        at: Reg<A>,
        offset: i64,
        xs: &[Reg<T>],
    ) {
        let (v, list) = (vector(xs.len()), list(xs));
        let (space, t) = (space.store(), T::MEMORY);
        self.line(format_args!("st{space}{v}{t} [{at}+{offset}], {list}"));
    }

    /// Reads a byte or 16 bits, with zeros before them.
    pub fn load_narrow<A: Address>(
        &mut self,
        space: Space,
        at: Reg<A>,
        offset: i64,
        bits: u32,
    ) -> Reg<B32> {
        let to = self.reg();
        self.load_narrow_to(space, at, offset, bits, to);
        to
    }

    /// The same, into a register.
    pub fn load_narrow_to<A: Address>(
        &mut self,
        space: Space,
        at: Reg<A>,
        offset: i64,
        bits: u32,
        to: Reg<B32>,
    ) {
        let space = space.load();
        self.line(format_args!("ld{space}.u{bits} {to}, [{at}+{offset}]"));
    }

    /// Writes the low 8 or 16 bits.
    pub fn store_narrow<A: Address>(
        &mut self,
        space: Space,
        at: Reg<A>,
        offset: i64,
        bits: u32,
        x: impl Into<Src<B32>>,
    ) {
        let (space, x) = (space.store(), x.into());
        self.line(format_args!("st{space}.u{bits} [{at}+{offset}], {x}"));
    }
}

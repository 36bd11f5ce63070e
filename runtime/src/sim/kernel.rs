//! Modules and their kernels: where variables lie, and the decoded code.

use super::ast::{Entry, Space, Unit, Var};
use super::decode::{Code, decode};
use super::parse::{error, parse};
use crate::error::Result;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where shared memory begins in the generic address space.
pub const SHARED_WINDOW: u64 = 0x0100_0000_0000;
/// Where local memory does.
pub const LOCAL_WINDOW: u64 = 0x0200_0000_0000;
/// Where kernel parameters do.
pub const PARAM_WINDOW: u64 = 0x0300_0000_0000;
/// Where constants do.
pub const CONST_WINDOW: u64 = 0x0400_0000_0000;
/// Bytes of each of these windows.
pub const WINDOW: u64 = 1 << 32;

/// PTX text, parsed and checked once.
pub struct Module {
    pub(super) id: u64,
    pub(super) sm: u32,
    kernels: Vec<Kernel>,
    /// `.const` variables.
    pub(super) constants: Vec<u8>,
    /// `.global` variables: bytes and initial contents.
    pub(super) globals: Vec<(u64, Vec<u8>)>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Where it lies in the block of parameters, bytes.
    pub offset: u32,
    /// Bytes.
    pub bytes: u32,
}

/// A kernel of a module.
pub struct Kernel {
    name: String,
    params: Vec<Param>,
    pub(super) code: Code,
    /// Static shared memory, bytes; dynamic memory begins there.
    pub(super) shared: u32,
    /// Local memory of a thread, bytes.
    pub(super) local: u64,
    pub(super) max_threads: Option<[u32; 3]>,
    pub(super) threads: Option<[u32; 3]>,
    pub(super) cluster: Option<[u32; 3]>,
    pub(super) max_cluster: Option<u32>,
}

impl Module {
    /// Reads PTX text. K0780 with line, column and remedy where the text breaks a rule of
    /// the ISA or uses what is not simulated.
    pub fn parse(ptx: &str) -> Result<Module> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let mut unit = parse(ptx)?;
        let mut module = Module {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            sm: unit.sm,
            kernels: vec![],
            constants: vec![],
            globals: vec![],
        };
        place_data(&mut unit.vars, &mut module);
        let mut entries = std::mem::take(&mut unit.entries);
        for entry in &mut entries {
            place_data(&mut entry.vars, &mut module);
            let kernel = kernel(&mut unit, entry)?;
            module.kernels.push(kernel);
        }
        Ok(module)
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// All kernels, in the text's order.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter()
    }
}

impl Kernel {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes of the block of parameters.
    pub fn param_bytes(&self) -> usize {
        self.params
            .last()
            .map_or(0, |p| (p.offset + p.bytes) as usize)
    }

    /// Static shared memory, bytes.
    pub fn shared_bytes(&self) -> u32 {
        self.shared
    }

    /// Threads of a block, where the text requires a number.
    pub fn required_threads(&self) -> Option<[u32; 3]> {
        self.threads
    }
}

/// Gives `.const` and `.global` variables their places.
fn place_data(vars: &mut [Var], module: &mut Module) {
    for var in vars {
        let init = || {
            let mut init = var.init.clone().unwrap_or_default();
            init.resize(var.bytes as usize, 0);
            init
        };
        match var.space {
            Space::Const => {
                let at = (module.constants.len() as u64).next_multiple_of(var.align);
                module.constants.resize(at as usize, 0);
                module.constants.extend(init());
                var.offset = at;
            }
            Space::Global => {
                let number = module.globals.len() as u64;
                module.globals.push((var.bytes, init()));
                var.offset = number;
            }
            _ => {}
        }
    }
}

fn stack(vars: &mut [Var], space: Space, mut end: u64) -> u64 {
    for var in vars.iter_mut().filter(|v| v.space == space && v.bytes > 0) {
        var.offset = end.next_multiple_of(var.align);
        end = var.offset + var.bytes;
    }
    end
}

fn kernel(unit: &mut Unit, entry: &mut Entry) -> Result<Kernel> {
    let shared = stack(&mut unit.vars, Space::Shared, 0);
    let shared = stack(&mut entry.vars, Space::Shared, shared);
    let local = stack(&mut entry.vars, Space::Local, 0);
    // All dynamic variables begin at one place, as in C.
    let dynamic = |v: &&mut Var| v.space == Space::Shared && v.bytes == 0;
    let both = || unit.vars.iter().chain(&entry.vars);
    let align = both()
        .filter(|v| v.space == Space::Shared && v.bytes == 0)
        .map(|v| v.align)
        .max();
    let shared = align.map_or(shared, |a| shared.next_multiple_of(a));
    for var in unit.vars.iter_mut().chain(&mut entry.vars).filter(dynamic) {
        var.offset = shared;
    }
    if shared >= 1 << 24 || local > 1 << 19 {
        let place = entry
            .body
            .first()
            .map_or_else(Default::default, |i| i.place);
        let what = format!(
            "kernel `{}` declares too much shared or local memory",
            entry.name
        );
        return Err(error(place, what, "at most 227 KiB shared, 512 KiB local"));
    }
    let params = (entry.params.iter())
        .map(|v| Param {
            name: v.name.clone(),
            offset: v.offset as u32,
            bytes: v.bytes as u32,
        })
        .collect();
    Ok(Kernel {
        name: entry.name.clone(),
        params,
        code: decode(unit, entry)?,
        shared: shared as u32,
        local,
        max_threads: entry.max_threads,
        threads: entry.threads,
        cluster: entry.cluster,
        max_cluster: entry.max_cluster,
    })
}

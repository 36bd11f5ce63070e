//! The plan: what an artifact tells the executor to do, as data.
//!
//! Sizes are symbolic; a *binding* of the entry's symbols makes them numbers.
//! Every index in here is checked by [`Program::validate`] before anything runs.

use crate::error::{Error, Result};
pub use crate::gpu::{Factors, Gpu, GpuKernel, Pass, Tile, Tuned, Unit, Work};
use kiln_ir::ops::strings::StringFn;
use kiln_ir::strings::Pattern;
use kiln_ir::{DType, Dim};
use serde::{Deserialize, Serialize};

/// Version of the plan. An artifact of another version is refused: it is made
/// anew from its model.
pub const PLAN_VERSION: u32 = 7;

/// What says of a plan whether its form is known.
#[derive(Deserialize)]
pub(crate) struct Versioned {
    pub(crate) version: u32,
}

/// K0702 for a plan of another version.
pub(crate) fn check_version(version: u32) -> Result<()> {
    if version == PLAN_VERSION {
        return Ok(());
    }
    let message =
        format!("the artifact has plan version {version}, this runtime reads {PLAN_VERSION}");
    Err(Error::input("K0702", message).help("compile the model again with this version of kiln"))
}

/// Everything an artifact holds besides bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Program {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Weights and state.
    pub globals: Vec<Global>,
    /// Kernel symbols; the code for every level and GPU target defines all of them.
    pub kernels: Vec<String>,
    /// Symbols of kernels that GPU targets alone define, for steps that the runtime computes
    /// where it runs on a CPU. Their numbers go on behind those of `kernels`.
    #[serde(default)]
    pub device_kernels: Vec<String>,
    /// Objects by CPU level, best first.
    pub objects: Vec<Object>,
    /// PTX by GPU target, best first. One plan serves CPUs and GPUs.
    #[serde(default)]
    pub gpu: Vec<Gpu>,
    /// Entry points.
    pub entries: Vec<Entry>,
    /// The section of the string constants, where there are any. String elements of
    /// globals are their numbers, from 1 on; 0 is the empty string.
    #[serde(default)]
    pub strings: Option<u32>,
    /// Facts for people: source file, producer, options.
    pub meta: std::collections::BTreeMap<String, String>,
}

/// Machine code for one CPU level.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Object {
    /// The level's name.
    pub level: String,
    /// CPU features that must be there, as `std::arch` names them.
    pub requires: Vec<String>,
    /// The sections that hold its ELF objects.
    pub sections: Vec<u32>,
}

/// A value that outlives a call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Global {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<u64>,
    /// Bytes.
    pub bytes: u64,
    /// Where its contents are.
    pub data: GlobalData,
    /// State: changed by runs. Weights are not.
    pub state: bool,
    /// The name in checkpoints.
    pub checkpoint: Option<String>,
}

/// Where a global's (initial) contents are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum GlobalData {
    /// A section of the artifact.
    Section(u32),
    /// These bytes over and over (one element).
    Splat(Vec<u8>),
}

/// An input or output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extents; symbols of inputs are bound from what the caller gives.
    pub dims: Vec<Dim>,
    /// Its buffer.
    pub buffer: u32,
}

/// A condition on sizes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guard {
    /// Left side.
    pub left: Dim,
    /// `true`: `left == right`; `false`: `left <= right`.
    pub equal: bool,
    /// Right side.
    pub right: Dim,
    /// What fails otherwise.
    pub because: String,
}

/// An entry point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What the caller gives.
    pub inputs: Vec<Port>,
    /// What the caller gets.
    pub outputs: Vec<Port>,
    /// Conditions checked when sizes are bound.
    pub guards: Vec<Guard>,
    /// Every buffer.
    pub buffers: Vec<Buffer>,
    /// What to do.
    pub steps: Vec<Step>,
}

/// A piece of memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Buffer {
    /// Its size.
    pub bytes: Dim,
    /// Where it is.
    pub place: Place,
    /// First and last step (counted in program order, nested steps included)
    /// that touch it: buffers whose intervals are apart may share memory.
    pub live: (u32, u32),
}

/// Where a buffer is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Place {
    /// The caller's memory.
    Input,
    /// Memory of the session that the caller reads after the run.
    Output,
    /// A weight or a state value.
    Global(u32),
    /// The arena.
    Arena,
    /// Inside another buffer.
    View {
        /// The other buffer.
        of: u32,
        /// Bytes into it.
        offset: Dim,
    },
}

/// One step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Step {
    /// Runs a kernel.
    Launch(Launch),
    /// Writes sizes as i64.
    WriteDims {
        /// Where to.
        to: u32,
        /// Which.
        values: Vec<Dim>,
    },
    /// Copies bytes.
    Copy {
        /// Where from.
        from: u32,
        /// Where to.
        to: u32,
        /// How many.
        bytes: Dim,
    },
    /// Names a size that data decides.
    BindDim {
        /// The name.
        symbol: String,
        /// An i64 scalar.
        from: u32,
        /// The largest it may be.
        max: Option<Dim>,
    },
    /// Names sizes that the way taken decides.
    SetDims {
        /// Names and values, all from the sizes before this step.
        sizes: Vec<(String, Dim)>,
    },
    /// Fails if one of these conditions does not hold (K0716).
    Check {
        /// On sizes that data decides, all of which have values here.
        guards: Vec<Guard>,
    },
    /// Between elements of less than a byte as files have them and one byte each
    /// as kernels do (integers sign-extended).
    Repack {
        /// Where from.
        from: u32,
        /// Where to.
        to: u32,
        /// The elements' type.
        dtype: DType,
        /// How many elements.
        count: Dim,
        /// Whether the result is packed.
        pack: bool,
    },
    /// The indices of nonzero elements.
    NonZero {
        /// The elements.
        from: u32,
        /// Their type.
        dtype: DType,
        /// Their extents.
        dims: Vec<Dim>,
        /// i64[rank, count].
        to: u32,
        /// The name of `count`.
        symbol: String,
    },
    /// The best elements along an axis, and where they were: a kernel on a device, the
    /// runtime's own work on a CPU.
    TopK {
        /// The elements; the elements taken, best first; i64 indices along the axis: one
        /// variant, of a kernel among the [`device_kernels`](Program::device_kernels).
        launch: Launch,
        /// The elements' type.
        dtype: DType,
        /// Their extents.
        dims: Vec<Dim>,
        /// Which axis.
        axis: u32,
        /// How many are taken.
        k: Dim,
        /// The largest, not the smallest.
        largest: bool,
    },
    /// Strings made of strings or numbers, or the other way round, one by one.
    Strings {
        /// How.
        f: StringFn,
        /// The elements.
        args: Vec<u32>,
        /// Their type.
        dtype: DType,
        /// How many elements.
        count: Dim,
        /// Where to.
        to: u32,
        /// What it stems from, for errors and profiles.
        label: String,
    },
    /// The pieces of strings.
    SplitStrings {
        /// The strings.
        from: u32,
        /// Between the pieces; white space where it is empty.
        delimiter: String,
        /// How often a string is cut at most.
        most: Option<u64>,
        /// How many strings.
        count: Dim,
        /// The name of the largest number of pieces.
        symbol: String,
        /// str[count, symbol].
        pieces: u32,
        /// i64[count]: how many pieces there are.
        counts: u32,
        /// What it stems from, for errors and profiles.
        label: String,
    },
    /// One of two blocks.
    If {
        /// A bool scalar.
        cond: u32,
        /// If true.
        then: Vec<Step>,
        /// If false.
        otherwise: Vec<Step>,
    },
    /// A block again and again.
    Loop(Loop),
}

/// A kernel with its arguments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    /// Variants in order of preference: taken where every guard holds; the last
    /// has none.
    pub variants: Vec<Variant>,
    /// Buffers and byte offsets: what is read, then what is written.
    pub args: Vec<(u32, Dim)>,
    /// How many of the last arguments are written.
    pub writes: u32,
    /// What it stems from, for errors and profiles.
    pub label: String,
    /// Floating-point operations.
    pub flops: Dim,
    /// Bytes read and written.
    pub bytes: Dim,
}

/// One kernel that a launch may run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Variant {
    /// Conditions.
    pub guards: Vec<Guard>,
    /// Which kernel.
    pub kernel: u32,
    /// Its integer parameters.
    pub params: Vec<Dim>,
    /// How many units of work it has.
    pub tiles: Dim,
    /// Scratch bytes that each thread needs.
    pub scratch: Dim,
}

/// A loop: runs while the iteration is below the trip count (if that is not
/// negative) and the condition holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loop {
    /// i64 scalar.
    pub trip: u32,
    /// bool scalar, read before the first iteration.
    pub cond: u32,
    /// i64 scalar that the body reads.
    pub iteration: u32,
    /// bool scalar that the body writes.
    pub body_cond: u32,
    /// The body.
    pub body: Vec<Step>,
    /// After each iteration: from, to, bytes.
    pub carried: Vec<(u32, u32, Dim)>,
    /// After each iteration, appended: from, to, bytes of one.
    pub scanned: Vec<(u32, u32, Dim)>,
    /// The name given to the number of iterations.
    pub symbol: Option<String>,
    /// Sizes that an iteration decides, from those at its start: extents of
    /// carried values.
    #[serde(default)]
    pub sizes: Vec<(String, Dim)>,
}

/// Nested blocks beyond this are refused.
const MAX_DEPTH: u32 = 64;

impl Program {
    /// Checks every index and count against what is there: sections of these
    /// lengths, in bytes.
    pub fn validate(&self, lengths: &[usize]) -> Result<()> {
        let sections = lengths.len();
        let bad = |what: String| {
            Err(Error::input(
                "K0703",
                format!("the artifact's plan is damaged: {what}"),
            ))
        };
        check_version(self.version)?;
        for g in &self.globals {
            match &g.data {
                GlobalData::Section(s) => match lengths.get(*s as usize) {
                    None => {
                        return bad(format!("@{} lies in section {s} of {sections}", g.name));
                    }
                    Some(&n) if n as u64 != g.bytes => {
                        let want = g.bytes;
                        return bad(format!("@{} has {n} bytes, not {want}", g.name));
                    }
                    Some(_) => {}
                },
                GlobalData::Splat(e) if e.is_empty() || e.len() > 16 => {
                    return bad(format!("@{} repeats an element of a wrong size", g.name));
                }
                // Kernels read weights where they lie.
                GlobalData::Splat(_) if !g.state => {
                    return bad(format!("@{} is a weight without contents", g.name));
                }
                GlobalData::Splat(_) => {}
            }
            // A run's strings are forgotten after it, and state is not.
            if g.state && g.dtype == DType::Str {
                return bad(format!("@{} is state of strings", g.name));
            }
        }
        if self.strings.is_some_and(|s| s as usize >= sections) {
            return bad("the strings lie in a section that is not there".into());
        }
        if self
            .objects
            .iter()
            .flat_map(|o| &o.sections)
            .any(|&s| s as usize >= sections)
        {
            return bad("an object lies in a section that is not there".into());
        }
        for g in &self.gpu {
            let kernels = self.kernels.len() + self.device_kernels.len();
            g.validate(kernels, sections).or_else(bad)?;
        }
        for e in &self.entries {
            for (i, b) in e.buffers.iter().enumerate() {
                let ok = match &b.place {
                    Place::Global(g) => (*g as usize) < self.globals.len(),
                    // A view of an earlier buffer: no cycles.
                    Place::View { of, .. } => (*of as usize) < i,
                    Place::Input | Place::Output | Place::Arena => true,
                };
                if !ok {
                    return bad(format!("buffer {i} of @{} refers to nothing", e.name));
                }
            }
            for p in e.inputs.iter().chain(&e.outputs) {
                if p.buffer as usize >= e.buffers.len() {
                    return bad(format!("port `{}` of @{} has no buffer", p.name, e.name));
                }
            }
            self.validate_steps(e, &e.steps, 0)?;
        }
        Ok(())
    }

    fn validate_steps(&self, e: &Entry, steps: &[Step], depth: u32) -> Result<()> {
        let bad = |what: &str| {
            Err(Error::input(
                "K0703",
                format!("the artifact's plan is damaged: @{}: {what}", e.name),
            ))
        };
        if depth > MAX_DEPTH {
            return bad("blocks are nested too deeply");
        }
        for step in steps {
            let mut buffers = vec![];
            match step {
                Step::Launch(l) => {
                    buffers.extend(l.args.iter().map(|a| a.0));
                    let known = |v: &Variant| (v.kernel as usize) < self.kernels.len();
                    if l.variants.is_empty() || !l.variants.iter().all(known) || l.args.len() > 256
                    {
                        return bad("a launch names no kernel");
                    }
                    if l.writes as usize > l.args.len() {
                        return bad("a launch writes more than its arguments");
                    }
                }
                Step::WriteDims { to, .. } => buffers.push(*to),
                Step::Copy { from, to, .. } => buffers.extend([*from, *to]),
                Step::BindDim { from, .. } => buffers.push(*from),
                Step::SetDims { .. } | Step::Check { .. } => {}
                Step::Repack {
                    from, to, dtype, ..
                } => {
                    buffers.extend([*from, *to]);
                    if !matches!(dtype.bits(), 2 | 4) {
                        return bad("repacking whole bytes");
                    }
                }
                Step::NonZero {
                    from, to, dtype, ..
                } => {
                    buffers.extend([*from, *to]);
                    if dtype.size().is_none() || *dtype == DType::Str {
                        return bad("nonzero of strings or sub-byte elements");
                    }
                }
                Step::TopK {
                    launch,
                    dtype,
                    dims,
                    axis,
                    ..
                } => {
                    buffers.extend(launch.args.iter().map(|a| a.0));
                    let own = self.kernels.len()..self.kernels.len() + self.device_kernels.len();
                    let known = |v: &Variant| own.contains(&(v.kernel as usize));
                    let [variant] = &launch.variants[..] else {
                        return bad("a selection has not one kernel");
                    };
                    let here = |a: &(u32, Dim)| a.1 == Dim::ZERO;
                    let plain = variant.guards.is_empty() && launch.args.iter().all(here);
                    if !plain || !known(variant) || launch.args.len() != 3 || launch.writes != 2 {
                        return bad("a selection is launched as something else");
                    }
                    let ordered = dtype.size().is_some() && *dtype != DType::Str;
                    if !ordered || *axis as usize >= dims.len() {
                        return bad(
                            "a selection of strings or sub-byte elements, or along no axis",
                        );
                    }
                }
                Step::Strings {
                    f, args, dtype, to, ..
                } => {
                    buffers.extend(args.iter().chain([to]));
                    if args.len() != f.arity() || f.result(*dtype).is_err() {
                        return bad("a step on strings that has no such arguments");
                    }
                    if matches!(f, StringFn::FullMatch(p) if Pattern::new(p).is_err()) {
                        return bad("an expression that does not compile");
                    }
                }
                Step::SplitStrings {
                    from,
                    pieces,
                    counts,
                    ..
                } => buffers.extend([*from, *pieces, *counts]),
                Step::If {
                    cond,
                    then,
                    otherwise,
                } => {
                    buffers.push(*cond);
                    self.validate_steps(e, then, depth + 1)?;
                    self.validate_steps(e, otherwise, depth + 1)?;
                }
                Step::Loop(l) => {
                    buffers.extend([l.trip, l.cond, l.iteration, l.body_cond]);
                    buffers.extend(l.carried.iter().chain(&l.scanned).flat_map(|c| [c.0, c.1]));
                    self.validate_steps(e, &l.body, depth + 1)?;
                }
            }
            if buffers.iter().any(|&b| b as usize >= e.buffers.len()) {
                return bad("a step names a buffer that is not there");
            }
        }
        Ok(())
    }

    /// The entry of this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }
}

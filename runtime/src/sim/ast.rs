//! What the parser makes of PTX text: declarations resolved, instructions as words.

use super::lex::Place;
use super::types::Ty;

/// A module as it is written.
#[derive(Debug, Default)]
pub struct Unit<'a> {
    /// `.version`: major times ten plus minor.
    pub version: u32,
    /// `.target sm_NN`: NN.
    pub sm: u32,
    /// Whether the target ends in `a`: features of that architecture alone.
    pub specific: bool,
    /// Variables of the module.
    pub vars: Vec<Var>,
    /// Kernels.
    pub entries: Vec<Entry<'a>>,
}

/// A state space that variables are declared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the ISA's own names")]
pub enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

impl Space {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Space::Generic => "generic",
            Space::Global => "global",
            Space::Shared => "shared",
            Space::Local => "local",
            Space::Const => "const",
            Space::Param => "param",
        }
    }
}

/// A declared variable.
#[derive(Clone, Debug)]
pub struct Var {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// Alignment, bytes.
    pub align: u64,
    /// Bytes; 0 for `extern .shared name[]`, whose size the launch gives.
    pub bytes: u64,
    /// Contents; shorter than `bytes` if zeros follow.
    pub init: Option<Vec<u8>>,
    /// Where it lies in its space, bytes; set once all are known.
    pub offset: u64,
}

/// A kernel as it is written.
#[derive(Debug, Default)]
pub struct Entry<'a> {
    /// Its name.
    pub name: String,
    /// Parameters, with their offsets.
    pub params: Vec<Var>,
    /// Types of registers.
    pub regs: Vec<Ty>,
    /// Shared and local variables.
    pub vars: Vec<Var>,
    /// Instructions.
    pub body: Vec<Instr<'a>>,
    /// `.maxntid`.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`.
    pub threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`.
    pub cluster: Option<[u32; 3]>,
    /// `.maxclusterrank`.
    pub max_cluster: Option<u32>,
    /// Lists of `.branchtargets`, as places in `body`.
    pub targets: Vec<Vec<u32>>,
}

/// An instruction.
#[derive(Debug)]
pub struct Instr<'a> {
    /// `@p` or `@!p`: the register, and whether it is negated.
    pub guard: Option<(u32, bool)>,
    /// The opcode's first word.
    pub name: &'a str,
    /// The words after its dots.
    pub mods: Vec<&'a str>,
    /// Operands.
    pub operands: Vec<Operand<'a>>,
    /// Where it stands.
    pub place: Place,
    /// The scope that its labels are looked up from.
    pub scope: u32,
    /// How it is written.
    pub text: &'a str,
}

/// A variable of the module, of the kernel or a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "said above")]
pub enum VarRef {
    Module(u32),
    Entry(u32),
    Param(u32),
}

/// An operand.
#[derive(Clone, Debug)]
pub enum Operand<'a> {
    /// A register.
    Reg(u32),
    /// A special register, as it is written.
    Special(String),
    /// An integer.
    Int(i128),
    /// The bits of a single.
    Single(u32),
    /// A double.
    Double(f64),
    /// A variable's address plus an offset.
    Var(VarRef, i64),
    /// `{a, b, …}`
    Vector(Vec<Operand<'a>>),
    /// `[…]`
    Mem(Box<Mem<'a>>),
    /// `!p`
    Not(Box<Operand<'a>>),
    /// `a|b`
    Pair(Box<(Operand<'a>, Operand<'a>)>),
    /// `_`
    Sink,
    /// A name that is declared nowhere before: a label.
    Name(&'a str),
    /// A label's place in the body.
    Label(u32),
    /// A list of branch targets.
    Targets(u32),
}

/// An address.
#[derive(Clone, Debug)]
pub struct Mem<'a> {
    /// A register, a variable or an integer.
    pub base: Operand<'a>,
    /// Bytes added to it.
    pub offset: i64,
    /// Coordinates of a tensor, `[map, {x, y}]`.
    pub coords: Vec<Operand<'a>>,
}

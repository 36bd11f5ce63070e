//! Instructions as words to instructions that run: operands become slots, constants
//! and special registers become slots that are filled before a warp starts, so that
//! nothing but slots is left when it runs. Every modifier must be consumed, in the
//! ISA's order; every operand must have a type that may stand there.

use super::ast::{Entry, Instr, Unit};
use super::op::{Collect, Inst, Op};
use super::regs::Slot;
use super::report::Class;
use super::special::Special;
use super::types::{Kind, Ty};
use super::{
    address, bulk, convert, cp, fp, int, ldmatrix, ldst, logic, mbar, mma, select, sync, warp_ops,
    wgmma,
};
use crate::error::Result;
use std::collections::HashMap;

/// A kernel's code and what its registers start as.
#[derive(Default)]
pub struct Code {
    /// Instructions; the end of the body is an exit.
    pub insts: Vec<Inst>,
    /// Slots of a warp.
    pub slots: u32,
    /// Constants: the slot, the bits, whether it takes two slots.
    pub consts: Vec<(Slot, u64, bool)>,
    /// Special registers in use.
    pub specials: Vec<(Slot, Special)>,
    /// Smallest access to shared memory, bytes: what races are looked for in.
    pub granule: u32,
    /// What it uses.
    pub uses: Uses,
}

/// What a kernel uses that decides how it is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uses {
    /// What CTAs do to memory depends on their order: it is kept.
    pub ordered: bool,
    /// wgmma.
    pub wgmma: bool,
    /// mbarriers, bulk copies: agents beside threads.
    pub bulk: bool,
}

/// Decodes one kernel whose variables have their offsets.
pub fn decode(unit: &Unit, entry: &Entry) -> Result<Code> {
    let mut build = Build::new(entry);
    for instr in &entry.body {
        let inst = build.instruction(unit, entry, instr)?;
        build.code.insts.push(inst);
    }
    let line = entry.body.last().map_or(0, |i| i.place.line);
    build.code.insts.push(Inst::plain(
        Op::Exit,
        Class::Control,
        line,
        "(end of the body)",
    ));
    Ok(build.code)
}

/// What is built up over a kernel's instructions.
pub struct Build {
    /// The result.
    pub code: Code,
    /// Registers' slots.
    pub(super) regs: Vec<Slot>,
    pub(super) consts: HashMap<(u64, bool), Slot>,
    pub(super) specials: HashMap<Special, Slot>,
    pub(super) carry: Option<Slot>,
}

impl Build {
    fn new(entry: &Entry) -> Build {
        let mut code = Code {
            granule: 16,
            ..Code::default()
        };
        let regs = (entry.regs.iter())
            .map(|ty| {
                let at = code.slots;
                code.slots += ty.bits().div_ceil(32);
                at
            })
            .collect();
        let (consts, specials) = (HashMap::new(), HashMap::new());
        Build {
            code,
            regs,
            consts,
            specials,
            carry: None,
        }
    }

    pub(super) fn slot(&mut self, wide: bool) -> Slot {
        let at = self.code.slots;
        self.code.slots += 1 + wide as u32;
        at
    }

    fn instruction(&mut self, unit: &Unit, entry: &Entry, instr: &Instr) -> Result<Inst> {
        let guard = instr
            .guard
            .map(|(reg, negated)| (self.regs[reg as usize], negated));
        let mut cx = Cx {
            unit,
            entry,
            build: self,
            i: instr,
            at: 0,
            reads: vec![],
            writes: vec![],
            collect: Collect::None,
            class: Class::Integer,
        };
        cx.reads.extend(guard.map(|(slot, _)| slot));
        let op = cx.family()?;
        cx.done()?;
        let (collect, class) = (cx.collect, cx.class);
        Ok(Inst {
            op,
            guard,
            reads: cx.reads.into(),
            writes: cx.writes.into(),
            collect,
            class,
            line: instr.place.line,
            text: instr
                .text
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .into(),
        })
    }
}

/// One instruction being decoded.
pub struct Cx<'a, 'b> {
    /// The module.
    pub unit: &'b Unit<'a>,
    /// The kernel.
    pub entry: &'b Entry<'a>,
    /// What is built.
    pub build: &'b mut Build,
    /// The instruction.
    pub i: &'b Instr<'a>,
    /// The next modifier.
    pub(super) at: usize,
    /// Slots that it reads.
    pub reads: Vec<Slot>,
    /// Slots that it writes.
    pub writes: Vec<Slot>,
    /// Which lanes must take part at once.
    pub collect: Collect,
    /// What it is counted as.
    pub class: Class,
}

impl<'a> Cx<'a, '_> {
    fn family(&mut self) -> Result<Op> {
        match self.i.name {
            "add" | "sub" | "mul" | "fma" | "div" | "abs" | "neg" | "min" | "max"
                if self.float() =>
            {
                fp::decode(self)
            }
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" | "copysign"
            | "testp" => fp::decode(self),
            "add" | "sub" | "mul" | "mad" | "div" | "rem" | "abs" | "neg" | "min" | "max"
            | "addc" | "subc" | "sad" | "dp4a" => int::decode(self),
            "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "bfe"
            | "bfi" | "prmt" | "popc" | "clz" | "brev" | "bfind" | "fns" => logic::decode(self),
            "setp" | "selp" | "set" | "slct" => select::decode(self),
            "mov" | "cvt" => convert::decode(self),
            "cvta" | "isspacep" | "mapa" | "getctarank" => address::decode(self),
            "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "createpolicy"
            | "discard" | "applypriority" => ldst::decode(self),
            "bra" | "brx" | "exit" | "ret" | "trap" | "bar" | "barrier" | "membar" | "fence"
            | "nanosleep" | "griddepcontrol" | "setmaxnreg" | "pmevent" => sync::decode(self),
            "shfl" | "vote" | "match" | "activemask" | "redux" | "elect" => warp_ops::decode(self),
            "ldmatrix" | "stmatrix" => ldmatrix::decode(self),
            "movmatrix" | "mma" => mma::decode(self),
            "mbarrier" => mbar::decode(self),
            "wgmma" => wgmma::decode(self),
            "cp" => match self.i.mods[..] {
                ["reduce", ..] | ["async", "bulk", ..] => bulk::decode(self),
                _ => cp::decode(self),
            },
            _ => self.err(
                "no such instruction, or not one that is simulated",
                "see ARCHITECTURE.md",
            ),
        }
    }

    fn float(&self) -> bool {
        let ty = self.i.mods.last().and_then(|m| Ty::parse(m));
        ty.is_some_and(|ty| matches!(ty.kind(), Kind::Float | Kind::Alternate))
    }
}

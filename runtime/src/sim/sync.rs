//! Control flow, barriers and fences: decoding (PTX ISA, "Control Flow Instructions",
//! "Parallel Synchronization and Communication Instructions").

use super::ast::Operand;
use super::decode::Cx;
use super::op::{Collect, Op};
use super::order::{Clock, Gather};
use super::regs::Slot;
use super::report::Class;
use super::types::Ty;
use crate::error::Result;
use std::rc::Rc;

/// A barrier of a CTA.
pub struct Bar {
    /// Which, 0 to 15.
    pub id: Slot,
    /// Threads, a multiple of 32; all of the CTA without.
    pub count: Option<Slot>,
    /// What it does beside.
    pub kind: BarKind,
    /// Whether whole warps take part.
    pub aligned: bool,
}

/// What a barrier does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Wait.
    Sync,
    /// Do not wait.
    Arrive,
    /// Wait, and count the threads whose predicate holds: the result, the predicate,
    /// whether it is negated.
    Popc(Slot, Slot, bool),
    /// Wait, and whether it holds for all.
    And(Slot, Slot, bool),
    /// Wait, and whether it holds for one.
    Or(Slot, Slot, bool),
}

/// The barriers of a CTA.
pub struct Bars {
    /// Numbered 0 to 15.
    pub named: Vec<BarState>,
}

/// One barrier.
#[derive(Default)]
pub struct BarState {
    /// Threads that arrived.
    pub arrived: u32,
    /// Threads that it waits for, once somebody arrived.
    pub expected: u32,
    /// Times that it was passed.
    pub generation: u64,
    /// What those that arrived have seen.
    pub gather: Gather,
    /// What everybody had seen when it was passed last.
    pub clock: Rc<Clock>,
    /// Threads whose predicate held, now and when it was passed last.
    pub holds: u32,
    pub held: u32,
    /// Threads that gave a predicate when it was passed last.
    pub of: u32,
}

impl Default for Bars {
    fn default() -> Bars {
        Bars {
            named: (0..16).map(|_| BarState::default()).collect(),
        }
    }
}

/// A fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Orders generic accesses.
    Generic,
    /// Generic and asynchronous accesses.
    Proxy,
}

pub fn decode(cx: &mut Cx) -> Result<Op> {
    cx.class = Class::Sync;
    match cx.i.name {
        "bra" | "brx" | "exit" | "ret" | "trap" => {
            cx.class = Class::Control;
            control(cx)
        }
        "bar" | "barrier" => barrier(cx),
        "membar" => {
            cx.count(0)?;
            cx.one_of(&[("cta", ()), ("gl", ()), ("sys", ())])?;
            Ok(Op::Fence(Fence::Generic))
        }
        "fence" => fence(cx),
        "nanosleep" => {
            cx.need(70, 63)?;
            cx.require("u32")?;
            cx.src(0, Ty::U32)?;
            Ok(Op::Nop)
        }
        "griddepcontrol" => {
            cx.need(90, 78)?;
            cx.one_of(&[("launch_dependents", ()), ("wait", ())])?;
            Ok(Op::Nop)
        }
        "setmaxnreg" => {
            cx.need_hopper()?;
            cx.one_of(&[("inc", ()), ("dec", ())])?;
            for word in ["sync", "aligned", "u32"] {
                cx.require(word)?;
            }
            if cx.known_in(0, 24..=256)? % 8 != 0 {
                return cx.err("the count must be a multiple of 8", "round it");
            }
            cx.aligned();
            Ok(Op::Nop)
        }
        name => cx.err(format!("`{name}` is not simulated"), "take it out"),
    }
}

fn control(cx: &mut Cx) -> Result<Op> {
    match cx.i.name {
        "bra" => {
            cx.accept("uni");
            cx.count(1)?;
            match cx.operand(0)? {
                Operand::Label(at) => Ok(Op::Bra(*at)),
                _ => cx.err("a branch goes to a label", "name one"),
            }
        }
        "brx" => {
            cx.require("idx")?;
            cx.accept("uni");
            cx.count(2)?;
            let index = cx.src(0, Ty::U32)?;
            match cx.operand(1)? {
                Operand::Targets(list) => {
                    let targets = cx.entry.targets[*list as usize].clone();
                    Ok(Op::Brx(index, targets.into()))
                }
                _ => cx.err("operand 1 must be a list of .branchtargets", "declare one"),
            }
        }
        "trap" => Ok(Op::Trap),
        // A kernel's `ret` ends the thread.
        _ => {
            cx.accept("uni");
            cx.count(0)?;
            Ok(Op::Exit)
        }
    }
}

fn barrier(cx: &mut Cx) -> Result<Op> {
    let old = cx.i.name == "bar";
    if old && cx.accept("warp") {
        cx.require("sync")?;
        cx.count(1)?;
        let members = cx.src(0, Ty::B32)?;
        cx.collect = Collect::Members(members);
        return Ok(Op::WarpBarrier);
    }
    if !old && cx.accept("cluster") {
        return cluster(cx);
    }
    cx.accept("cta");
    if cx.accept("red") {
        return reduction(cx, old);
    }
    let arrive = cx.one_of(&[("sync", false), ("arrive", true)])?;
    let aligned = old | cx.accept("aligned");
    cx.count_in(1 + arrive as usize, 2)?;
    let id = cx.src(0, Ty::B32)?;
    let count = if cx.i.operands.len() > 1 {
        Some(cx.src(1, Ty::B32)?)
    } else {
        None
    };
    if aligned {
        cx.aligned();
    }
    let kind = if arrive {
        BarKind::Arrive
    } else {
        BarKind::Sync
    };
    Ok(Op::Bar(Bar {
        id,
        count,
        kind,
        aligned,
    }))
}

fn reduction(cx: &mut Cx, old: bool) -> Result<Op> {
    let which = cx.one_of(&[("popc", 0u8), ("and", 1), ("or", 2)])?;
    let aligned = old | cx.accept("aligned");
    cx.require(if which == 0 { "u32" } else { "pred" })?;
    cx.count_in(3, 4)?;
    let last = cx.i.operands.len() - 1;
    let d = cx.dst(0, if which == 0 { Ty::U32 } else { Ty::Pred })?;
    let id = cx.src(1, Ty::B32)?;
    let count = if last == 3 {
        Some(cx.src(2, Ty::B32)?)
    } else {
        None
    };
    let (p, negated) = cx.pred(last)?;
    if aligned {
        cx.aligned();
    }
    let kind = match which {
        0 => BarKind::Popc(d, p, negated),
        1 => BarKind::And(d, p, negated),
        _ => BarKind::Or(d, p, negated),
    };
    Ok(Op::Bar(Bar {
        id,
        count,
        kind,
        aligned,
    }))
}

fn cluster(cx: &mut Cx) -> Result<Op> {
    cx.need(90, 78)?;
    let wait = cx.one_of(&[("arrive", false), ("wait", true)])?;
    let relaxed = match wait {
        true => {
            cx.accept("acquire");
            false
        }
        false => cx
            .choice(&[("release", false), ("relaxed", true)])
            .unwrap_or(false),
    };
    if cx.accept("aligned") {
        cx.aligned();
    }
    cx.count(0)?;
    Ok(if wait {
        Op::ClusterWait
    } else {
        Op::ClusterArrive(!relaxed)
    })
}

fn fence(cx: &mut Cx) -> Result<Op> {
    cx.need(70, 60)?;
    cx.count(0)?;
    if cx.accept("proxy") {
        cx.need(90, 80)?;
        if cx.accept("alias") {
            return Ok(Op::Fence(Fence::Generic));
        }
        cx.require("async")?;
        cx.choice(&[("global", ()), ("shared::cta", ()), ("shared::cluster", ())]);
        return Ok(Op::Fence(Fence::Proxy));
    }
    if cx.accept("mbarrier_init") {
        cx.need(90, 80)?;
        cx.require("release")?;
        cx.require("cluster")?;
        return Ok(Op::Fence(Fence::Proxy));
    }
    cx.choice(&[
        ("sc", ()),
        ("acq_rel", ()),
        ("acquire", ()),
        ("release", ()),
    ]);
    cx.one_of(&[("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())])?;
    Ok(Op::Fence(Fence::Generic))
}

//! A cluster of CTAs that runs: warps, their groups of lanes, what they wait for.
//!
//! Lanes of a warp that stand at one place are a group. Of the groups that can run, the
//! one with the lowest place runs, until it meets another: so lanes that a branch parted
//! come together where the code does. Warps take turns when they block.

use super::barrier::ClusterBar;
use super::decode::Code;
use super::fault::{Fault, FaultKind, Outcome, Trouble, trouble};
use super::kernel::Kernel;
use super::launch::Launch;
use super::memory::Global;
use super::op::{Collect, Inst, Op};
use super::order::{Agent, Clock, Gather, joined};
use super::regs::{lanes, predicate};
use super::report::{Class, Report};
use super::shared::Shared;
use super::sync::Bars;
use super::warp::{Group, Warp};
use super::{access, barrier, bulk, cp, ldmatrix, mbar, wgmma};
use std::rc::Rc;

/// What all CTAs of a launch have in common.
pub struct Env<'a> {
    pub kernel: &'a Kernel,
    pub code: &'a Code,
    pub global: Global<'a>,
    pub launch: &'a Launch,
    pub params: &'a [u8],
    /// `.const` variables of the module.
    pub constants: &'a [u8],
    /// Addresses of `.global` variables.
    pub globals: &'a [u64],
    /// Instructions of warps that may still run.
    pub steps: &'a std::sync::atomic::AtomicU64,
}

/// A CTA.
pub struct Cta {
    pub index: [u32; 3],
    pub shared: Shared,
    pub bars: Bars,
    /// wgmma that each warp has issued.
    pub issued: Vec<u32>,
}

/// The CTAs of a cluster, and the order among their threads.
pub struct Machine<'a> {
    pub env: &'a Env<'a>,
    pub ctas: Vec<Cta>,
    /// The stamp of accesses.
    pub now: u32,
    /// Threads, which are the first agents.
    pub threads: u32,
    pub report: Report,
    /// Moves whenever something happens that others may wait for.
    pub changes: u64,
    /// The number of the next mbarrier's agent.
    pub next_agent: Agent,
    /// The barrier of the cluster.
    pub cluster: ClusterBar,
    /// The warp polled in vain: others go on first.
    pub polled: bool,
    /// Suspended waits give up, once.
    pub time_out: bool,
}

/// What comes after an instruction.
pub enum Flow {
    /// The next one.
    Next,
    /// That one.
    Jump(u32),
    /// To different places.
    Scatter(Vec<(u32, u32)>),
    /// The lanes end.
    Exit,
    /// It is executed again, with this, once others have run.
    Block(u64),
}

/// Instructions of a group in one go, and how often in a turn: so that a warp that polls
/// memory does not keep others from writing it.
const SLICE: u64 = 4096;
const SLICES: u32 = 64;

/// What a warp did in its turn.
#[derive(PartialEq, Eq)]
pub enum Turn {
    /// It ran and is blocked now, or others had to wait for long.
    Ran,
    /// It did nothing but poll.
    Polled,
    /// It could not run.
    Stuck,
    /// All its lanes have exited.
    Done,
}

impl<'a> Machine<'a> {
    /// A synchronisation happened: later accesses have another stamp.
    pub fn tick(&mut self) -> u32 {
        let now = self.now;
        self.now += 1;
        self.changes += 1;
        now
    }

    /// The lanes of `mask` have seen what `clock` has.
    pub fn acquire(&self, warp: &mut Warp, mask: u32, clock: &Rc<Clock>) {
        let mut last: Option<(Rc<Clock>, Rc<Clock>)> = None;
        for lane in lanes(mask) {
            let view = &mut warp.views[lane];
            let new = match &last {
                Some((from, to)) if Rc::ptr_eq(from, &view.clock) => to.clone(),
                _ => {
                    let to = joined(&view.clock, clock, self.threads);
                    last = Some((view.clock.clone(), to.clone()));
                    to
                }
            };
            view.clock = new;
        }
    }

    /// The lanes of `mask` are ordered among each other.
    pub fn order_lanes(&mut self, warp: &mut Warp, mask: u32) {
        let now = self.tick();
        let mut gather = Gather::default();
        lanes(mask).for_each(|lane| gather.release(&warp.views[lane], now));
        let clock = gather.finish(self.threads);
        lanes(mask).for_each(|lane| warp.views[lane].clock = clock.clone());
    }

    /// Runs a warp until it blocks.
    pub fn turn(&mut self, warp: &mut Warp) -> Result<Turn, Box<Fault>> {
        let (mut ran, mut polled, mut slices) = (false, false, 0);
        // Lanes that were tried in this turn and are still blocked.
        let mut blocked = 0u32;
        loop {
            warp.merge();
            let Some(i) = warp.pick(blocked) else {
                return Ok(match (warp.groups.is_empty(), ran, polled) {
                    (true, ..) => Turn::Done,
                    (_, true, _) => Turn::Ran,
                    (_, _, true) => Turn::Polled,
                    _ => Turn::Stuck,
                });
            };
            let mask = warp.groups[i].mask;
            if self.group(warp, i)? {
                slices += 1;
                if slices == SLICES {
                    return Ok(Turn::Ran);
                }
                if std::mem::take(&mut self.polled) {
                    (polled, blocked) = (true, blocked | mask);
                    continue;
                }
                ran = true;
                blocked = 0;
                // Once is enough: a loop around the wait would give up for ever.
                self.time_out = false;
            } else {
                blocked |= mask;
            }
        }
    }

    /// Runs a group until it blocks, parts, or reaches another; whether it did anything.
    fn group(&mut self, warp: &mut Warp, i: usize) -> Result<bool, Box<Fault>> {
        let env = self.env;
        let Group {
            mut pc,
            mut mask,
            mut token,
            ..
        } = warp.groups[i];
        let others = warp.groups.iter().filter(|g| g.pc > pc);
        let limit = others.map(|g| g.pc).min().unwrap_or(u32::MAX);
        let mut steps = 0u64;
        let done = loop {
            let inst = &env.code.insts[pc as usize];
            let active = self.guarded(warp, inst, mask)?;
            let rest = mask & !active;
            steps += 1;
            if active == 0 {
                self.report.count(Class::Control, 0);
                pc += 1;
            } else if inst.collect != Collect::None && !self.gathered(warp, inst, active)? {
                warp.groups[i] = Group {
                    collecting: true,
                    ..Group::at(pc, active)
                };
                warp.add_group(pc + 1, rest);
                break true;
            } else {
                match self.step(warp, inst, active, token)? {
                    Flow::Next => pc += 1,
                    Flow::Jump(to) if rest == 0 => pc = to,
                    Flow::Jump(to) => {
                        warp.part(i, &[(to, active), (pc + 1, rest)]);
                        break true;
                    }
                    Flow::Scatter(mut parts) => {
                        parts.push((pc + 1, rest));
                        warp.part(i, &parts);
                        break true;
                    }
                    Flow::Exit if rest == 0 => {
                        warp.groups.remove(i);
                        break true;
                    }
                    Flow::Exit => (pc, mask) = (pc + 1, rest),
                    Flow::Block(to) => {
                        warp.groups[i] = Group {
                            token: Some(to),
                            ..Group::at(pc, active)
                        };
                        warp.add_group(pc + 1, rest);
                        break token.is_none() || steps > 1;
                    }
                }
            }
            token = None;
            if pc >= limit || steps >= SLICE || self.polled {
                warp.groups[i] = Group::at(pc, mask);
                break true;
            }
        };
        self.spend(warp, steps)?;
        Ok(done)
    }

    /// The lanes of `mask` for which the instruction's predicate holds.
    #[inline]
    fn guarded(&self, warp: &Warp, inst: &Inst, mask: u32) -> Result<u32, Box<Fault>> {
        let Some((slot, negated)) = inst.guard else {
            return Ok(mask);
        };
        self.check_reads(warp, inst, &inst.reads[..1], mask)?;
        let bits = predicate(&warp.regs, slot);
        Ok(mask & if negated { !bits } else { bits })
    }

    /// Checks and executes an instruction, and notes what it wrote.
    fn step(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        active: u32,
        token: Option<u64>,
    ) -> Result<Flow, Box<Fault>> {
        self.check_reads(warp, inst, &inst.reads, active)?;
        if warp.flight.count > 0 {
            self.check_flight(warp, inst, active)?;
        }
        let flow = self.execute(warp, inst, active, token);
        let flow = flow.map_err(|t| self.fault(warp, inst, active, *t))?;
        if matches!(flow, Flow::Block(_)) {
            return Ok(flow);
        }
        let writes = inst.writes.iter();
        writes.for_each(|slot| warp.defined[*slot as usize] |= active);
        if self.env.code.uses.wgmma {
            warp.flight.step += 1;
            let (flight, writes) = (&mut warp.flight, inst.writes.iter());
            writes.for_each(|slot| flight.written[*slot as usize] = flight.step);
        }
        self.report.count(inst.class, active.count_ones());
        Ok(flow)
    }

    /// The lanes of `active` end.
    fn exit(&mut self, warp: &mut Warp, active: u32) -> Outcome<Flow> {
        bulk::unfinished(warp, active)?;
        self.cluster.live -= active.count_ones();
        barrier::settle_cluster(self);
        warp.live &= !active;
        Ok(Flow::Exit)
    }

    fn spend(&self, warp: &Warp, steps: u64) -> Result<(), Box<Fault>> {
        use std::sync::atomic::Ordering::Relaxed;
        let left = self
            .env
            .steps
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(steps));
        if left.is_ok() {
            return Ok(());
        }
        let limit = self.env.launch.steps;
        let what = format!("more than {limit} instructions of warps: a loop that does not end?");
        let help = "check what the loop waits for, or raise the launch's `steps`";
        let pc = warp.groups.first().map_or(0, |g| g.pc);
        let inst = &self.env.code.insts[pc as usize];
        Err(self.fault(
            warp,
            inst,
            warp.live,
            *trouble(FaultKind::Steps, what, help),
        ))
    }

    /// Whether all lanes that a collective needs are here.
    fn gathered(&self, warp: &Warp, inst: &Inst, active: u32) -> Result<bool, Box<Fault>> {
        let needed = match inst.collect {
            Collect::None => active,
            Collect::Aligned => {
                if warp.live != u32::MAX
                    && !matches!(inst.op, Op::Bar(_) | Op::ClusterArrive(_) | Op::ClusterWait)
                {
                    let what = "lanes of the warp have exited, or never were, at an instruction that all must execute";
                    let help = "launch whole warps, and branch around the work instead of exiting";
                    return Err(self.fault(
                        warp,
                        inst,
                        active,
                        *trouble(FaultKind::Divergent, what, help),
                    ));
                }
                warp.live
            }
            Collect::Members(slot) => {
                self.check_reads(warp, inst, &inst.reads, active)?;
                let words = &warp.regs[slot as usize].0;
                let first = words[active.trailing_zeros() as usize];
                for lane in lanes(active) {
                    if words[lane] != first || words[lane] >> lane & 1 == 0 {
                        let what = format!(
                            "the mask of members is {:#x} in this lane, which must be in it, and {first:#x} in others",
                            words[lane]
                        );
                        let help = "all members name the same mask, with themselves in it";
                        return Err(self.fault(
                            warp,
                            inst,
                            1 << lane,
                            *trouble(FaultKind::Divergent, what, help),
                        ));
                    }
                }
                first & warp.live
            }
        };
        Ok(needed & !active == 0)
    }

    #[inline]
    fn check_reads(
        &self,
        warp: &Warp,
        inst: &Inst,
        slots: &[u32],
        active: u32,
    ) -> Result<(), Box<Fault>> {
        for slot in slots {
            let missing = active & !warp.defined[*slot as usize];
            let flying = warp.flight.count > 0 && warp.flight.users[*slot as usize] > 0;
            if missing != 0 && !flying {
                let what = "a register is read that nothing wrote in this lane";
                let help = "write it on every path, or read it under the predicate that wrote it";
                return Err(self.fault(
                    warp,
                    inst,
                    missing,
                    *trouble(FaultKind::Uninitialised, what, help),
                ));
            }
        }
        Ok(())
    }

    /// Registers of wgmma in flight belong to it.
    fn check_flight(&self, warp: &Warp, inst: &Inst, active: u32) -> Result<(), Box<Fault>> {
        if matches!(inst.op, Op::Wgmma(_)) {
            return Ok(());
        }
        let both = inst.reads.iter().chain(&inst.writes);
        match both
            .clone()
            .any(|slot| warp.flight.users[*slot as usize] > 0)
        {
            false => Ok(()),
            true => {
                let what = "a register of wgmma in flight is accessed";
                let help = "wgmma.commit_group and wait_group before accumulators or A are used";
                Err(self.fault(
                    warp,
                    inst,
                    active,
                    *trouble(FaultKind::MissingWait, what, help),
                ))
            }
        }
    }

    /// A fault of one of the lanes of `mask`.
    pub fn fault(&self, warp: &Warp, inst: &Inst, mask: u32, t: Trouble) -> Box<Fault> {
        let lane = t.lane.unwrap_or(mask.trailing_zeros()).min(31) as usize;
        Box::new(Fault {
            kind: t.kind,
            kernel: self.env.kernel.name().into(),
            line: inst.line,
            instruction: inst.text.to_string(),
            block: self.ctas[warp.rank].index,
            thread: Some(warp.place.thread(lane)),
            address: t.address,
            message: t.message,
            help: t.help,
        })
    }

    fn execute(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        active: u32,
        token: Option<u64>,
    ) -> Outcome<Flow> {
        match &inst.op {
            Op::Alu(f) => f(&mut warp.regs, active),
            Op::Exchange(f) => f(&mut warp.regs, active)?,
            Op::Nop => {}
            Op::Bra(to) => return Ok(Flow::Jump(*to)),
            Op::Brx(slot, targets) => return barrier::table(warp, active, *slot, targets),
            Op::Exit => return self.exit(warp, active),
            Op::Trap => {
                let help = "see the condition that guards it";
                return Err(trouble(FaultKind::Trap, "the kernel executed `trap`", help));
            }
            Op::Load(load) => access::load(self, warp, load, active)?,
            Op::Store(store) => access::store(self, warp, store, active)?,
            Op::Atom(atom) => access::atom(self, warp, atom, active)?,
            Op::Bar(bar) => return barrier::bar(self, warp, bar, active, token),
            Op::WarpBarrier => self.order_lanes(warp, active),
            Op::ClusterArrive(releases) => {
                return barrier::cluster_arrive(self, warp, *releases, active);
            }
            Op::ClusterWait => return barrier::cluster_wait(self, warp, active),
            Op::Matrix(f, flops) => {
                f(&mut warp.regs, active);
                self.report.mma_flops += flops;
            }
            Op::Matrices(op) => ldmatrix::matrices(self, warp, op)?,
            Op::CpAsync(op) => cp::copy(self, warp, op, active)?,
            Op::CpCommit => cp::commit(warp, active),
            Op::CpWait(left) => cp::wait(self, warp, *left, active),
            Op::CpArrive(addr, space, own) => cp::arrive(self, warp, addr, *space, *own, active)?,
            Op::Mbar(op) => return mbar::operate(self, warp, op, active, token),
            Op::Bulk(op) => bulk::copy(self, warp, op, active)?,
            Op::Tensor(op) => bulk::tensor(self, warp, op, active)?,
            Op::BulkCommit => bulk::commit(self, warp, active),
            Op::BulkWait(left) => bulk::wait(self, warp, *left, active),
            Op::Wgmma(op) => wgmma::issue(self, warp, op)?,
            Op::WgmmaFence => wgmma::fence(warp),
            Op::WgmmaCommit => wgmma::commit(self, warp),
            Op::WgmmaWait(left) => return wgmma::wait(self, warp, *left),
            Op::Fence(fence) => return barrier::fence(self, warp, *fence, active),
        }
        Ok(Flow::Next)
    }
}

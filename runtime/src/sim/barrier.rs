//! Barriers and fences as they are executed.

use super::exec::{Flow, Machine};
use super::fault::{FaultKind, Outcome, trouble};
use super::order::{Clock, Gather, proxy_fenced};
use super::regs::{LANES, Slot, lanes, predicate, set_predicate, store_words};
use super::sync::{Bar, BarKind, Fence};
use super::warp::Warp;
use std::rc::Rc;

/// `bar` and `barrier`: arrives, then waits unless it is an arrival alone. The token
/// is the generation that is waited for.
pub fn bar(
    m: &mut Machine,
    warp: &mut Warp,
    bar: &Bar,
    active: u32,
    token: Option<u64>,
) -> Outcome<Flow> {
    let id = same(warp, bar.id, active, "the barrier's number")?;
    if id > 15 {
        let what = format!("barrier {id}, of 0 to 15");
        return Err(trouble(FaultKind::Operand, what, "use another number"));
    }
    if let Some(generation) = token {
        return Ok(resume(m, warp, bar, id, active, generation));
    }
    let threads: u32 = warp.place.ntid.iter().product();
    let expected = match bar.count {
        Some(slot) => same(warp, slot, active, "the barrier's count")?,
        None => threads.next_multiple_of(32),
    };
    if expected == 0 || expected % 32 != 0 || expected > threads.next_multiple_of(32) {
        let what = format!("a barrier of {expected} threads in a CTA of {threads}");
        let help = "a multiple of 32, at most the CTA's threads";
        return Err(trouble(FaultKind::Operand, what, help));
    }
    let now = m.tick();
    let total = m.threads;
    let state = &mut m.ctas[warp.rank].bars.named[id as usize];
    if state.arrived > 0 && state.expected != expected {
        let what = format!(
            "barrier {id} with {expected} threads, which others use with {}",
            state.expected
        );
        return Err(trouble(
            FaultKind::Operand,
            what,
            "use one count, or another barrier",
        ));
    }
    state.expected = expected;
    lanes(active).for_each(|lane| state.gather.release(&warp.views[lane], now));
    // Warps are counted whole where they take part whole.
    state.arrived += if bar.aligned || active == warp.live {
        32
    } else {
        active.count_ones()
    };
    if let BarKind::Popc(_, p, negated) | BarKind::And(_, p, negated) | BarKind::Or(_, p, negated) =
        bar.kind
    {
        let bits = predicate(&warp.regs, p) ^ if negated { u32::MAX } else { 0 };
        state.holds += (bits & active).count_ones();
    }
    let generation = state.generation;
    if state.arrived >= expected {
        state.generation += 1;
        state.arrived = 0;
        state.clock = std::mem::take(&mut state.gather).finish(total);
        (state.held, state.holds) = (state.holds, 0);
        state.of = expected.min(threads);
        m.report.barriers += 1;
    }
    match bar.kind {
        BarKind::Arrive => Ok(Flow::Next),
        _ => Ok(resume(m, warp, bar, id, active, generation)),
    }
}

fn resume(
    m: &mut Machine,
    warp: &mut Warp,
    bar: &Bar,
    id: u32,
    active: u32,
    generation: u64,
) -> Flow {
    let state = &m.ctas[warp.rank].bars.named[id as usize];
    if state.generation == generation {
        return Flow::Block(generation);
    }
    let (held, of, clock) = (state.held, state.of, state.clock.clone());
    m.acquire(warp, active, &clock);
    match bar.kind {
        BarKind::Sync | BarKind::Arrive => {}
        BarKind::Popc(d, ..) => {
            store_words(&mut warp.regs[d as usize], &[held; LANES], active);
        }
        BarKind::And(d, ..) => {
            set_predicate(
                &mut warp.regs,
                d,
                if held == of { u32::MAX } else { 0 },
                active,
            );
        }
        BarKind::Or(d, ..) => {
            set_predicate(
                &mut warp.regs,
                d,
                if held > 0 { u32::MAX } else { 0 },
                active,
            );
        }
    }
    Flow::Next
}

/// The value of a slot, which all lanes must agree on.
pub fn same(warp: &Warp, slot: Slot, active: u32, what: &str) -> Outcome<u32> {
    let words = &warp.regs[slot as usize].0;
    let first = words[active.trailing_zeros() as usize];
    match lanes(active).find(|lane| words[*lane] != first) {
        None => Ok(first),
        Some(lane) => {
            let text = format!(
                "{what} is {} in one lane and {first} in another",
                words[lane]
            );
            Err(trouble(FaultKind::Operand, text, "use one value in the whole warp").lane(lane))
        }
    }
}

/// A fence. Generic ones order nothing by themselves here: barriers, mbarriers and
/// atomics that release do.
pub fn fence(m: &mut Machine, warp: &mut Warp, fence: Fence, active: u32) -> Outcome<Flow> {
    if fence == Fence::Generic {
        return Ok(Flow::Next);
    }
    let now = m.tick();
    let mut last = None;
    for lane in lanes(active) {
        let view = &mut warp.views[lane];
        let new = match &last {
            Some((from, to)) if Rc::ptr_eq(from, &view.clock) => Rc::clone(to),
            _ => {
                let to = proxy_fenced(&view.clock);
                last = Some((view.clock.clone(), to.clone()));
                to
            }
        };
        view.clock = new;
        view.fenced = now;
    }
    Ok(Flow::Next)
}

/// `brx.idx`
pub fn table(warp: &Warp, active: u32, slot: Slot, targets: &[u32]) -> Outcome<Flow> {
    let mut parts: Vec<(u32, u32)> = vec![];
    for lane in lanes(active) {
        let index = warp.regs[slot as usize].0[lane];
        let Some(target) = targets.get(index as usize) else {
            let what = format!("target {index} of a table of {}", targets.len());
            return Err(trouble(
                FaultKind::Operand,
                what,
                "check the index before the branch",
            )
            .lane(lane));
        };
        match parts.iter_mut().find(|(pc, _)| pc == target) {
            Some((_, mask)) => *mask |= 1 << lane,
            None => parts.push((*target, 1 << lane)),
        }
    }
    Ok(Flow::Scatter(parts))
}

/// The barrier of a cluster.
#[derive(Default)]
pub struct ClusterBar {
    /// Threads that arrived.
    arrived: u32,
    /// Threads that have not exited.
    pub live: u32,
    generation: u64,
    gather: Gather,
    clock: Rc<Clock>,
}

/// `barrier.cluster.arrive`
pub fn cluster_arrive(
    m: &mut Machine,
    warp: &mut Warp,
    releases: bool,
    active: u32,
) -> Outcome<Flow> {
    let now = m.tick();
    for lane in lanes(active) {
        if warp.cluster[lane] == Some(m.cluster.generation) {
            let what = "a thread arrives twice at the cluster's barrier";
            return Err(trouble(
                FaultKind::Mbarrier,
                what,
                "barrier.cluster.wait between arrivals",
            )
            .lane(lane));
        }
        warp.cluster[lane] = Some(m.cluster.generation);
        if releases {
            m.cluster.gather.release(&warp.views[lane], now);
        }
    }
    m.cluster.arrived += active.count_ones();
    settle_cluster(m);
    Ok(Flow::Next)
}

/// Opens the cluster's barrier if all threads that live have arrived.
pub fn settle_cluster(m: &mut Machine) {
    let threads = m.threads;
    let bar = &mut m.cluster;
    if bar.arrived > 0 && bar.arrived >= bar.live {
        bar.arrived = 0;
        bar.generation += 1;
        bar.clock = std::mem::take(&mut bar.gather).finish(threads);
        m.report.barriers += 1;
        m.changes += 1;
    }
}

/// `barrier.cluster.wait`
pub fn cluster_wait(m: &mut Machine, warp: &mut Warp, active: u32) -> Outcome<Flow> {
    for lane in lanes(active) {
        match warp.cluster[lane] {
            None => {
                let what = "a thread waits for the cluster's barrier without having arrived";
                return Err(
                    trouble(FaultKind::Mbarrier, what, "barrier.cluster.arrive first").lane(lane),
                );
            }
            Some(generation) if generation == m.cluster.generation => return Ok(Flow::Block(0)),
            Some(_) => {}
        }
    }
    lanes(active).for_each(|lane| warp.cluster[lane] = None);
    let clock = m.cluster.clock.clone();
    m.acquire(warp, active, &clock);
    Ok(Flow::Next)
}

//! Launches: checks, CTAs on the host's threads, deadlocks.

use super::barrier::ClusterBar;
use super::exec::{Cta, Env, Machine, Turn};
use super::fault::{Fault, FaultKind, trouble};
use super::kernel::{Kernel, Module};
use super::memory::{Global, Memory, Window};
use super::op::Inst;
use super::order::Clock;
use super::report::Report;
use super::shared::Shared;
use super::special::Place;
use super::sync::Bars;
use super::warp::Warp;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How a kernel is launched.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster along x, y, z; ones for none.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    /// The buffers that the kernel may access. None: all that is allocated.
    pub windows: Vec<Window>,
    /// Threads of the host; 0 for as many as there are processors. Results do not
    /// depend on it.
    pub threads: usize,
    /// Instructions of warps that may run.
    pub steps: u64,
}

impl Default for Launch {
    fn default() -> Launch {
        Launch {
            grid: [1; 3],
            block: [1; 3],
            cluster: [1; 3],
            shared: 0,
            windows: vec![],
            threads: 0,
            steps: 1 << 40,
        }
    }
}

/// Runs a kernel on `memory` to its end. `params` is the block of its parameters, each at
/// its offset. CTAs of a kernel whose atomics on global memory depend on their order run
/// one after the other, in the order of their numbers; others run at once.
pub fn launch(
    module: &Module,
    memory: &mut Memory,
    kernel: &Kernel,
    launch: &Launch,
    params: &[u8],
) -> Result<Report, Box<Fault>> {
    check(module, kernel, launch, params)?;
    let globals =
        globals(module, memory).map_err(|e| misfit(kernel, e.message, "use smaller variables"))?;
    let steps = AtomicU64::new(launch.steps);
    // Variables of the module lie outside the buffers of a launch.
    let mut windows = launch.windows.clone();
    if !windows.is_empty() {
        let own = globals.iter().zip(&module.globals);
        windows.extend(own.map(|(at, (len, _))| Window {
            start: *at,
            len: *len,
            writable: true,
        }));
    }
    let env = Env {
        kernel,
        code: &kernel.code,
        global: Global::new(memory, &windows),
        launch,
        params,
        constants: &module.constants,
        globals: &globals,
        steps: &steps,
    };
    let clusters: u64 = clusters(launch).iter().map(|n| *n as u64).product();
    let threads = match (kernel.code.uses.ordered, launch.threads) {
        (true, _) => 1,
        (false, 0) => std::thread::available_parallelism().map_or(1, |n| n.get()),
        (false, n) => n,
    };
    run(&env, clusters, threads.min(clusters as usize))
}

fn clusters(launch: &Launch) -> [u32; 3] {
    std::array::from_fn(|i| launch.grid[i] / launch.cluster[i])
}

fn run(env: &Env, clusters: u64, threads: usize) -> Result<Report, Box<Fault>> {
    let next = AtomicU64::new(0);
    let total = Mutex::new(Report::default());
    // The fault of the first cluster that has one, so that it is the same each time.
    let first: Mutex<Option<(u64, Box<Fault>)>> = Mutex::new(None);
    let failed = AtomicU64::new(u64::MAX);
    let work = || {
        let mut worker = Worker::new(env);
        loop {
            let cluster = next.fetch_add(1, Relaxed);
            if cluster >= clusters || cluster > failed.load(Relaxed) {
                break;
            }
            if let Err(fault) = worker.cluster(cluster) {
                failed.fetch_min(cluster, Relaxed);
                let mut first = first.lock().unwrap_or_else(|e| e.into_inner());
                if first.as_ref().is_none_or(|(at, _)| *at > cluster) {
                    *first = Some((cluster, fault));
                }
                break;
            }
        }
        total
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .add(&worker.machine.report);
    };
    if threads <= 1 {
        work();
    } else {
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    }
    match first.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some((_, fault)) => Err(fault),
        None => Ok(total.into_inner().unwrap_or_else(|e| e.into_inner())),
    }
}

/// Rounds in which all that runs polls in vain, until that counts as a deadlock.
const IDLE_ROUNDS: u32 = 10_000;

/// A thread of the host that runs clusters, one after the other.
struct Worker<'a> {
    machine: Machine<'a>,
    warps: Vec<Warp>,
}

impl<'a> Worker<'a> {
    fn new(env: &'a Env<'a>) -> Worker<'a> {
        let launch = env.launch;
        let warps = launch.block.iter().product::<u32>().div_ceil(32);
        let ctas: u32 = launch.cluster.iter().product();
        let bytes = (env.kernel.shared + launch.shared) as usize;
        let (code, uses) = (env.code, env.code.uses);
        let agents = uses.wgmma || uses.bulk || ctas > 1;
        let cta = || Cta {
            index: [0; 3],
            shared: Shared::new(bytes, code.granule, warps, agents),
            bars: Bars::default(),
            issued: vec![0; warps as usize],
        };
        Worker {
            machine: Machine {
                env,
                ctas: (0..ctas).map(|_| cta()).collect(),
                now: 0,
                threads: ctas * warps * 32,
                report: Report::default(),
                changes: 0,
                next_agent: 0,
                cluster: ClusterBar::default(),
                polled: false,
                time_out: false,
            },
            warps: (0..ctas * warps)
                .map(|_| Warp::new(code, env.kernel.local))
                .collect(),
        }
    }

    fn cluster(&mut self, cluster: u64) -> Result<(), Box<Fault>> {
        let env = self.machine.env;
        let m = &mut self.machine;
        let launch = env.launch;
        let [cx, cy, _] = clusters(launch).map(|n| n as u64);
        let at = [cluster % cx, cluster / cx % cy, cluster / cx / cy];
        m.now += 1;
        let (start, clock) = (m.now, Rc::new(Clock::default()));
        let ranks = m.ctas.len() as u32;
        let per = self.warps.len() as u32 / ranks;
        for rank in 0..ranks {
            let [x, y, _] = launch.cluster;
            let inside = [rank % x, rank / x % y, rank / x / y];
            let index = std::array::from_fn(|i| at[i] as u32 * launch.cluster[i] + inside[i]);
            let cta = &mut m.ctas[rank as usize];
            cta.index = index;
            cta.shared.reset(start, rank, ranks);
            cta.bars = Bars::default();
            cta.issued.fill(0);
            for warp in 0..per {
                let place = Place {
                    ntid: launch.block,
                    ctaid: index,
                    nctaid: launch.grid,
                    cluster: launch.cluster,
                    clustered: ranks > 1,
                    warp,
                    rank,
                    dynamic: launch.shared,
                    shared: env.kernel.shared + launch.shared,
                };
                let number = rank * per + warp;
                self.warps[number as usize].start(env, place, &clock, number * 32);
            }
        }
        m.next_agent = ranks * per * 34;
        m.cluster = ClusterBar::default();
        m.cluster.live = ranks * launch.block.iter().product::<u32>();
        m.report.blocks += ranks as u64;
        self.rounds()
    }

    /// Warps take turns until all have ended.
    fn rounds(&mut self) -> Result<(), Box<Fault>> {
        let m = &mut self.machine;
        let (mut given_up, mut give_up) = (None, false);
        // Rounds in which warps did nothing but poll, and nothing happened.
        let mut idle = (0, 0);
        loop {
            let (mut ran, mut polled, mut done) = (false, false, true);
            for warp in &mut self.warps {
                m.time_out = give_up;
                let turn = m.turn(warp)?;
                ran |= turn == Turn::Ran;
                polled |= turn == Turn::Polled;
                done &= turn == Turn::Done;
            }
            give_up = false;
            if done {
                return Ok(());
            }
            if ran || polled {
                let same = !ran && idle.1 == m.changes;
                idle = (if same { idle.0 + 1 } else { 0 }, m.changes);
                if idle.0 > IDLE_ROUNDS {
                    return Err(deadlock(m, &self.warps));
                }
                continue;
            }
            // A suspended `try_wait` may give up; if nothing came of that, none of them
            // ever ends.
            if given_up == Some(m.changes) {
                return Err(deadlock(m, &self.warps));
            }
            (given_up, give_up) = (Some(m.changes), true);
        }
    }
}

fn inst<'a>(m: &Machine<'a>, pc: u32) -> &'a Inst {
    &m.env.code.insts[pc as usize]
}

/// Nobody can go on: who waits where.
fn deadlock(m: &Machine, warps: &[Warp]) -> Box<Fault> {
    let mut waits: Vec<(u32, String, Vec<String>)> = vec![];
    for warp in warps {
        for g in &warp.groups {
            let who = if g.mask == u32::MAX {
                format!("warp {}", warp.index)
            } else {
                format!("lanes {:#x} of warp {}", g.mask, warp.index)
            };
            let who = if m.ctas.len() > 1 {
                format!("{who} of CTA {}", warp.rank)
            } else {
                who
            };
            let inst = inst(m, g.pc);
            match waits.iter_mut().find(|(line, ..)| *line == inst.line) {
                Some((_, _, list)) => list.push(who),
                None => waits.push((inst.line, inst.text.to_string(), vec![who])),
            }
        }
    }
    let shown = waits.iter().map(|(line, text, who)| {
        let few = who[..who.len().min(6)].join(", ");
        let more = if who.len() > 6 {
            format!(" and {} more", who.len() - 6)
        } else {
            String::new()
        };
        format!("{few}{more} at line {line} `{text}`")
    });
    let shown = shown.collect::<Vec<_>>().join("; ");
    // Lanes that wait for others of their warp are the cause if those are gone, or wait
    // for lanes as well.
    let parted = |warp: &&Warp| {
        let waiting = warp.groups.iter().any(|g| g.collecting);
        waiting && warp.groups.iter().all(|g| g.collecting)
    };
    let find = |warp: &Warp| warp.groups.iter().min_by_key(|g| !g.collecting).copied();
    let (warp, kind) = match warps.iter().find(parted) {
        Some(warp) => (warp, FaultKind::Divergent),
        None => match warps.iter().find(|w| !w.groups.is_empty()) {
            Some(warp) => (warp, FaultKind::Deadlock),
            None => (&warps[0], FaultKind::Deadlock),
        },
    };
    let group = find(warp);
    let (pc, mask) = group.map_or((0, 1), |g| (g.pc, g.mask));
    let trouble = match kind {
        FaultKind::Divergent => trouble(
            kind,
            format!("lanes of the warp are missing here, and cannot come: {shown}"),
            "let all lanes execute it: move it out of the branch",
        ),
        _ => trouble(
            kind,
            format!("no thread can go on: {shown}"),
            "check the counts of arrivals, the phases, and that every thread comes to its barriers",
        ),
    };
    m.fault(warp, inst(m, pc), mask, *trouble)
}

/// Addresses of the module's variables, which are allocated at its first launch.
fn globals(module: &Module, memory: &mut Memory) -> crate::error::Result<Vec<u64>> {
    if let Some(found) = memory.globals.get(&module.id) {
        return Ok(found.clone());
    }
    let mut out = vec![];
    for (bytes, init) in &module.globals {
        let at = memory.try_alloc(*bytes as usize)?;
        memory.write(at, init)?;
        out.push(at);
    }
    memory.globals.insert(module.id, out.clone());
    Ok(out)
}

/// A launch that does not fit its kernel.
fn misfit(kernel: &Kernel, message: String, help: &str) -> Box<Fault> {
    Box::new(Fault {
        kind: FaultKind::Launch,
        kernel: kernel.name().into(),
        line: 0,
        instruction: String::new(),
        block: [0; 3],
        thread: None,
        address: None,
        message,
        help: help.into(),
    })
}

/// Shared memory that a block may have, bytes, by target.
fn shared_limit(sm: u32) -> u32 {
    match sm {
        90.. => 232_448,
        86 | 89 => 101_376,
        80..90 => 166_912,
        75 => 65_536,
        _ => 98_304,
    }
}

fn check(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch,
    params: &[u8],
) -> Result<(), Box<Fault>> {
    let wrong = |message: String, help: &str| Err(misfit(kernel, message, help));
    let product = |v: [u32; 3]| v.iter().map(|n| *n as u64).product::<u64>();
    let threads = product(launch.block);
    let [_, gy, gz] = launch.grid;
    if launch.grid.contains(&0) || launch.grid[0] > i32::MAX as u32 || gy > 65535 || gz > 65535 {
        return wrong(
            format!("a grid of {:?} blocks", launch.grid),
            "1 to 2^31-1, 65535, 65535",
        );
    }
    if launch.block.iter().any(|n| *n > 1024)
        || !(1..=1024).contains(&threads)
        || launch.block[2] > 64
    {
        return wrong(
            format!("a block of {:?} threads", launch.block),
            "1 to 1024 threads, 64 along z",
        );
    }
    if kernel.threads.is_some_and(|t| t != launch.block) {
        return wrong(
            format!(
                "a block of {:?} threads, where .reqntid says {:?}",
                launch.block, kernel.threads
            ),
            "launch what it requires",
        );
    }
    if kernel.max_threads.is_some_and(|t| threads > product(t)) {
        return wrong(
            format!(
                "{threads} threads, more than .maxntid {:?}",
                kernel.max_threads
            ),
            "launch fewer",
        );
    }
    let ctas = product(launch.cluster);
    let whole =
        (0..3).all(|i| launch.cluster[i] > 0 && launch.grid[i].is_multiple_of(launch.cluster[i]));
    let most = kernel.max_cluster.unwrap_or(8).max(8) as u64;
    if !whole || ctas > most.min(16) || (ctas > 1 && module.sm < 90) {
        return wrong(
            format!(
                "clusters of {:?} in a grid of {:?}",
                launch.cluster, launch.grid
            ),
            "at most 8 blocks, which divide the grid, on sm_90",
        );
    }
    if kernel.cluster.is_some_and(|c| c != launch.cluster) {
        return wrong(
            format!(
                "clusters of {:?}, where .reqnctapercluster says {:?}",
                launch.cluster, kernel.cluster
            ),
            "launch what it requires",
        );
    }
    let (bytes, limit) = (
        kernel.shared as u64 + launch.shared as u64,
        shared_limit(module.sm),
    );
    if bytes > limit as u64 {
        return wrong(
            format!(
                "{bytes} bytes of shared memory, of {limit} on sm_{}",
                module.sm
            ),
            "use smaller tiles",
        );
    }
    if params.len() != kernel.param_bytes() {
        return wrong(
            format!(
                "{} bytes of parameters, where the kernel has {}",
                params.len(),
                kernel.param_bytes()
            ),
            "write each parameter at its offset",
        );
    }
    Ok(())
}

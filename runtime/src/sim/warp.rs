//! A warp: registers, groups of lanes, and what is pending for it.

use super::bulk::Groups;
use super::cp::Pending;
use super::decode::Code;
use super::exec::Env;
use super::local::Local;
use super::order::{Agent, Clock, View};
use super::regs::{LANES, Reg, lanes};
use super::special::Place;
use super::wgmma::Flight;
use std::rc::Rc;

/// A group of lanes at one place.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub pc: u32,
    pub mask: u32,
    /// What it waits for, if it does: what the blocked instruction said.
    pub token: Option<u64>,
    /// Whether it waits for other lanes of its warp.
    pub collecting: bool,
}

/// A warp.
pub struct Warp {
    /// Its CTA's rank in the cluster.
    pub rank: usize,
    /// Its number in the CTA.
    pub index: u32,
    pub regs: Vec<Reg>,
    /// Lanes of each slot that something wrote.
    pub defined: Vec<u32>,
    pub groups: Vec<Group>,
    /// Lanes that exist, and that have not exited.
    pub exist: u32,
    pub live: u32,
    pub views: Vec<View>,
    pub local: Local,
    pub place: Place,
    /// `cp.async` copies that it has not waited for.
    pub pending: Pending,
    /// Bulk stores of each lane.
    pub groups_of: Vec<Groups>,
    /// wgmma in flight.
    pub flight: Flight,
    /// The generation of the cluster's barrier that each lane arrived at.
    pub cluster: [Option<u64>; LANES],
}

impl Group {
    /// Lanes that wait for nothing.
    pub fn at(pc: u32, mask: u32) -> Group {
        Group {
            pc,
            mask,
            token: None,
            collecting: false,
        }
    }
}

impl Warp {
    /// A warp that exists in no CTA yet.
    pub fn new(code: &Code, local: u64) -> Warp {
        let mut regs = vec![Reg::default(); code.slots as usize];
        for (slot, bits, wide) in &code.consts {
            regs[*slot as usize] = Reg([*bits as u32; LANES]);
            if *wide {
                regs[*slot as usize + 1] = Reg([(*bits >> 32) as u32; LANES]);
            }
        }
        Warp {
            rank: 0,
            index: 0,
            regs,
            defined: vec![0; code.slots as usize],
            groups: vec![],
            exist: 0,
            live: 0,
            views: vec![],
            local: Local::new(local),
            place: Place::default(),
            pending: Pending::default(),
            groups_of: vec![],
            flight: Flight::default(),
            cluster: [None; LANES],
        }
    }

    /// Begins at the first instruction.
    pub fn start(&mut self, env: &Env, place: Place, clock: &Rc<Clock>, first: Agent) {
        let threads: u32 = place.ntid.iter().product();
        let lanes_here = (threads - place.warp * 32).min(32);
        (self.rank, self.index, self.place) = (place.rank as usize, place.warp, place);
        self.exist = u32::MAX >> (32 - lanes_here);
        self.live = self.exist;
        self.defined.fill(0);
        self.groups.clear();
        self.groups.push(Group::at(0, self.exist));
        let view = |lane| View {
            agent: first + lane,
            clock: clock.clone(),
            fenced: 0,
        };
        self.views = (0..LANES as u32).map(view).collect();
        self.local.reset();
        self.pending = Pending::default();
        self.groups_of = (0..LANES).map(|_| Groups::default()).collect();
        self.cluster = [None; LANES];
        self.flight = Flight::default();
        if env.code.uses.wgmma {
            self.flight.users = vec![0; self.defined.len()];
            self.flight.written = vec![0; self.defined.len()];
        }
        for (slot, special) in &env.code.specials {
            let (slot, wide) = (*slot as usize, special.ty().bits() == 64);
            for lane in lanes(self.exist) {
                let value = place.value(*special, lane, |i| env.globals[i as usize]);
                self.regs[slot].0[lane] = value as u32;
                if wide {
                    self.regs[slot + 1].0[lane] = (value >> 32) as u32;
                }
            }
        }
    }

    /// The group that runs next: of those that may, the one at the lowest place.
    pub fn pick(&self, blocked: u32) -> Option<usize> {
        let free = |g: &&(usize, &Group)| !g.1.collecting && g.1.mask & blocked == 0;
        let found = self.groups.iter().enumerate().collect::<Vec<_>>();
        found
            .iter()
            .filter(free)
            .min_by_key(|(_, g)| g.pc)
            .map(|(i, _)| *i)
    }

    /// A further group, if it has lanes.
    pub fn add_group(&mut self, pc: u32, mask: u32) {
        if mask != 0 {
            self.groups.push(Group::at(pc, mask));
        }
    }

    /// Group `i` becomes these: places and lanes.
    pub fn part(&mut self, i: usize, parts: &[(u32, u32)]) {
        self.groups.remove(i);
        parts
            .iter()
            .for_each(|(pc, mask)| self.add_group(*pc, *mask));
    }

    /// Joins groups that stand at one place and wait for nothing.
    pub fn merge(&mut self) {
        let mut i = 0;
        while i < self.groups.len() {
            let g = self.groups[i];
            let twin = |o: &Group| o.pc == g.pc && o.token.is_none() && g.token.is_none();
            if let Some(j) = (i + 1..self.groups.len()).find(|j| twin(&self.groups[*j])) {
                let other = self.groups.remove(j);
                self.groups[i].mask |= other.mask;
                self.groups[i].collecting = false;
            } else {
                i += 1;
            }
        }
    }
}

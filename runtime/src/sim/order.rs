//! What is ordered before what in shared memory: vector clocks over the threads of a
//! cluster and the agents that act for them (wgmma and bulk copies that read, mbarriers
//! for copies that write).
//!
//! There is one count, `now`, that every synchronisation moves. An access is stamped
//! with it; whoever releases publishes it as its entry; so an access by agent `a`
//! with stamp `s` is ordered before a thread that has seen `a` at `s` or later. Threads
//! that passed one barrier share one clock, so a barrier costs one pass over it.

use std::rc::Rc;

/// A thread or what acts for one.
pub type Agent = u32;

/// What is ordered before a thread.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Accesses of each agent up to this stamp.
    seen: Vec<u32>,
    /// Of these, generic writes that a proxy fence has made visible to asynchronous
    /// accesses, up to this stamp.
    proxied: Vec<u32>,
    /// Accesses of every thread up to this stamp.
    floor: u32,
}

fn at(list: &[u32], agent: Agent) -> u32 {
    list.get(agent as usize).copied().unwrap_or(0)
}

fn raise(list: &mut Vec<u32>, agent: Agent, to: u32) {
    if list.len() <= agent as usize {
        list.resize(agent as usize + 1, 0);
    }
    let entry = &mut list[agent as usize];
    *entry = (*entry).max(to);
}

fn merge(into: &mut Vec<u32>, from: &[u32]) {
    if into.len() < from.len() {
        into.resize(from.len(), 0);
    }
    for (a, b) in into.iter_mut().zip(from) {
        *a = (*a).max(*b);
    }
}

/// A thread's place in the order.
#[derive(Clone, Debug)]
pub struct View {
    /// Its number.
    pub agent: Agent,
    /// What it has seen.
    pub clock: Rc<Clock>,
    /// Its own writes up to this stamp are behind a proxy fence.
    pub fenced: u32,
}

impl View {
    /// Whether an access of `agent` at `stamp` is ordered before this thread.
    #[inline]
    pub fn sees(&self, agent: Agent, stamp: u32) -> bool {
        agent == self.agent || at(&self.clock.seen, agent) >= stamp
    }

    /// Whether accesses of all threads up to `stamp` are ordered before this thread.
    #[inline]
    pub fn past(&self, stamp: u32) -> bool {
        stamp <= self.clock.floor
    }

    /// Whether a generic write of `agent` at `stamp` is behind a proxy fence.
    pub fn proxied(&self, agent: Agent, stamp: u32) -> bool {
        (agent == self.agent && self.fenced >= stamp) || at(&self.clock.proxied, agent) >= stamp
    }
}

/// The clocks of several threads while they meet.
#[derive(Clone, Debug, Default)]
pub struct Gather {
    clock: Clock,
    /// What is merged already: the last few suffice.
    merged: Vec<Rc<Clock>>,
}

impl Gather {
    /// Going on from what was ordered before.
    pub fn from(clock: &Rc<Clock>) -> Gather {
        Gather {
            clock: (**clock).clone(),
            merged: vec![clock.clone()],
        }
    }

    /// Adds what a clock has seen.
    pub fn join(&mut self, clock: &Rc<Clock>) {
        if self.merged.iter().any(|c| Rc::ptr_eq(c, clock)) {
            return;
        }
        merge(&mut self.clock.seen, &clock.seen);
        merge(&mut self.clock.proxied, &clock.proxied);
        self.clock.floor = self.clock.floor.max(clock.floor);
        if self.merged.len() == 4 {
            self.merged.remove(0);
        }
        self.merged.push(clock.clone());
    }

    /// A thread releases what it did until now.
    pub fn release(&mut self, view: &View, now: u32) {
        self.join(&view.clock);
        raise(&mut self.clock.seen, view.agent, now);
        raise(&mut self.clock.proxied, view.agent, view.fenced);
    }

    /// What an agent did until `now` is done.
    pub fn done(&mut self, agent: Agent, now: u32) {
        raise(&mut self.clock.seen, agent, now);
    }

    /// The clock of all; the first `threads` agents are threads.
    pub fn finish(mut self, threads: u32) -> Rc<Clock> {
        let seen = self.clock.seen.iter().take(threads as usize);
        if self.clock.seen.len() >= threads as usize {
            let least = seen.copied().min().unwrap_or(0);
            self.clock.floor = self.clock.floor.max(least);
        }
        Rc::new(self.clock)
    }
}

/// `clock` with `other` added: itself if nothing is new.
pub fn joined(clock: &Rc<Clock>, other: &Rc<Clock>, threads: u32) -> Rc<Clock> {
    if Rc::ptr_eq(clock, other) {
        return clock.clone();
    }
    let mut gather = Gather::from(clock);
    gather.join(other);
    gather.finish(threads)
}

/// `clock` behind a proxy fence by threads whose own writes are fenced to `now`.
pub fn proxy_fenced(clock: &Rc<Clock>) -> Rc<Clock> {
    let mut out = (**clock).clone();
    let seen = out.seen.clone();
    merge(&mut out.proxied, &seen);
    Rc::new(out)
}

/// `clock` where an agent is seen up to `stamp`.
pub fn having_seen(clock: &Rc<Clock>, agent: Agent, stamp: u32) -> Rc<Clock> {
    let mut out = (**clock).clone();
    raise(&mut out.seen, agent, stamp);
    Rc::new(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_barrier_orders_and_nothing_else_does() {
        let start = Rc::new(Clock::default());
        let view = |agent| View {
            agent,
            clock: start.clone(),
            fenced: 0,
        };
        let (mut a, b) = (view(0), view(1));
        assert!(a.sees(0, 9) && !a.sees(1, 1));
        let mut gather = Gather::default();
        gather.release(&a, 3);
        gather.release(&b, 3);
        a.clock = gather.finish(2);
        assert!(a.sees(1, 3) && !a.sees(1, 4) && a.past(3) && !a.past(4));
        assert!(!a.proxied(1, 2));
        a.clock = proxy_fenced(&a.clock);
        assert!(a.proxied(1, 2) && !a.proxied(1, 4));
    }
}

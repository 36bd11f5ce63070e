//! What orders the lanes of a simulated device: a clock of each lane and of the host, and
//! who touched which memory. Work of two lanes on the same memory, one of them writing, of
//! which neither is known to be done when the other begins, is a fault that names both.
//!
//! A clock counts the operations of a lane; a lane knows of another one's up to a number.
//! It learns from signals that it waits for, and from the host, which learns where it waits
//! itself: what the host gives out afterwards comes after that.

use super::Lane;
use crate::error::{Error, Result};

/// The lanes and, last, the host.
const AGENTS: usize = Lane::ALL.len() + 1;
const HOST: usize = AGENTS - 1;

/// Operations that are known to be done, by lane.
type Clock = [u64; AGENTS];

/// A part of memory: where it begins, its bytes, and whether it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) writes: bool,
}

struct Access {
    part: Part,
    /// Which of its lane's operations it belongs to.
    number: u64,
    what: String,
}

/// The clocks and what was touched.
#[derive(Default)]
pub(super) struct Order {
    clocks: [Clock; AGENTS],
    signals: Vec<Clock>,
    /// By lane.
    accesses: [Vec<Access>; HOST],
}

fn join(into: &mut Clock, other: &Clock) {
    into.iter_mut()
        .zip(other)
        .for_each(|(a, b)| *a = (*a).max(*b));
}

impl Order {
    /// An operation of a lane that touches these parts; K0808 where another lane may touch
    /// one of them at the same time.
    pub(super) fn operation(&mut self, lane: Lane, parts: &[Part], what: &str) -> Result<()> {
        let here = lane as usize;
        // What the host knows when it gives work out is done before.
        let host = self.clocks[HOST];
        join(&mut self.clocks[here], &host);
        self.clocks[here][here] += 1;
        let number = self.clocks[here][here];
        self.check(here, parts, what)?;
        let access = |part: &Part| Access {
            part: *part,
            number,
            what: what.into(),
        };
        self.accesses[here].extend(parts.iter().filter(|p| p.len > 0).map(access));
        Ok(())
    }

    /// The host itself touches these parts.
    pub(super) fn of_host(&mut self, parts: &[Part], what: &str) -> Result<()> {
        self.check(HOST, parts, what)
    }

    fn check(&self, agent: usize, parts: &[Part], what: &str) -> Result<()> {
        let known = &self.clocks[agent];
        for (other, accesses) in self.accesses.iter().enumerate().filter(|o| o.0 != agent) {
            for a in accesses.iter().filter(|a| a.number > known[other]) {
                let meets = |p: &&Part| {
                    let apart = p.at >= a.part.at + a.part.len || a.part.at >= p.at + p.len;
                    !apart && (p.writes || a.part.writes)
                };
                if let Some(p) = parts.iter().find(meets) {
                    return Err(unordered(&a.what, what, p.at.max(a.part.at)));
                }
            }
        }
        Ok(())
    }

    /// A signal of what a lane was given so far, in place of an earlier one if that is
    /// named; its number.
    pub(super) fn signal(&mut self, lane: Lane, reuse: Option<u32>) -> u32 {
        let clock = self.clocks[lane as usize];
        match reuse.and_then(|s| self.signals.get_mut(s as usize)) {
            Some(place) => {
                *place = clock;
                reuse.unwrap_or(0)
            }
            None => {
                self.signals.push(clock);
                self.signals.len() as u32 - 1
            }
        }
    }

    /// What a lane is given from here on comes after a signal.
    pub(super) fn after(&mut self, lane: Lane, signal: u32) {
        if let Some(clock) = self.signals.get(signal as usize) {
            join(&mut self.clocks[lane as usize], clock);
        }
    }

    /// The host waits for all that a lane was given.
    pub(super) fn wait(&mut self, lane: Lane) {
        let clock = self.clocks[lane as usize];
        join(&mut self.clocks[HOST], &clock);
        // What the host knows, everything from here on comes after.
        let known = self.clocks[HOST];
        for (accesses, known) in self.accesses.iter_mut().zip(known) {
            accesses.retain(|a| a.number > known);
        }
    }

    /// The host waits for everything.
    pub(super) fn wait_all(&mut self) {
        Lane::ALL.into_iter().for_each(|lane| self.wait(lane));
    }
}

fn unordered(first: &str, second: &str, at: u64) -> Error {
    let message =
        format!("{first} and {second} touch the same memory, at {at:#x}, and nothing orders them");
    Error::run("K0808", message)
        .help("this is a bug of the runtime: a lane has to wait for the other")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(at: u64, len: u64, writes: bool) -> Part {
        Part { at, len, writes }
    }

    #[test]
    fn lanes_that_meet_are_named_unless_a_signal_orders_them() {
        // Each pair of accesses to 8 bytes at 100, the second one moved by some bytes.
        for (first, second, moved, meets) in [
            (true, false, 0, true),
            (false, true, 7, true),
            (true, true, 0, true),
            (false, false, 0, false),
            (true, true, 8, false),
        ] {
            for ordered in [false, true] {
                let mut o = Order::default();
                o.operation(Lane::Up, &[part(100, 8, first)], "A").unwrap();
                let s = o.signal(Lane::Up, None);
                if ordered {
                    o.after(Lane::Compute, s);
                }
                let done = o.operation(Lane::Compute, &[part(100 + moved, 8, second)], "B");
                assert_eq!(done.is_err(), meets && !ordered);
                if let Err(e) = done {
                    assert!(
                        e.code == "K0808" && e.message.starts_with("A and B touch"),
                        "{e}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_signal_covers_what_was_given_before_it_alone() {
        let mut o = Order::default();
        let s = o.signal(Lane::Up, None);
        o.operation(Lane::Up, &[part(0, 4, true)], "late").unwrap();
        o.after(Lane::Compute, s);
        assert!(
            o.operation(Lane::Compute, &[part(0, 4, false)], "x")
                .is_err()
        );
        // The same signal again, later.
        assert_eq!(o.signal(Lane::Up, Some(s)), s);
        o.after(Lane::Compute, s);
        o.operation(Lane::Compute, &[part(0, 4, false)], "x")
            .unwrap();
        // A third lane learns of the first one through the second.
        let s = o.signal(Lane::Compute, None);
        o.after(Lane::Down, s);
        o.operation(Lane::Down, &[part(0, 4, false)], "y").unwrap();
    }

    #[test]
    fn the_host_orders_what_it_waited_for() {
        let mut o = Order::default();
        o.operation(Lane::Compute, &[part(0, 4, true)], "x")
            .unwrap();
        assert!(o.of_host(&[part(0, 4, true)], "the host").is_err());
        o.wait(Lane::Compute);
        o.of_host(&[part(0, 4, true)], "the host").unwrap();
        o.operation(Lane::Up, &[part(0, 4, true)], "y").unwrap();
        assert!(o.accesses[Lane::Compute as usize].is_empty());
    }
}

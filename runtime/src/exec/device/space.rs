//! Where each buffer of an entry lives when the entry runs on a device: on the host, on
//! the device, or on both with copies where its value crosses. Decided once per entry.

use crate::plan::{Entry, Place, Step};

/// The memories that a cell is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) host: bool,
    pub(crate) device: bool,
}

impl Space {
    fn nowhere(self) -> bool {
        !self.host && !self.device
    }
}

/// Buffers that share bytes are one *cell*: a buffer with all its views, and every
/// buffer of one global.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spaces {
    /// The cell of each buffer.
    pub(crate) cell: Vec<u32>,
    /// Where each cell is.
    pub(crate) of: Vec<Space>,
    /// The global that a cell is, if it is one.
    pub(crate) global: Vec<Option<u32>>,
    /// Whether a cell may be copied to the host: it is there as well, or the caller gets it.
    pub(crate) leaves: Vec<bool>,
}

/// What a step of the host itself reads and writes: kernels and copies are not among
/// them, nor what is inside a block.
pub(crate) fn host_access(step: &Step) -> (Vec<u32>, Vec<u32>) {
    match step {
        Step::Launch(_)
        | Step::TopK { .. }
        | Step::Copy { .. }
        | Step::SetDims { .. }
        | Step::Check { .. } => (vec![], vec![]),
        Step::WriteDims { to, .. } => (vec![], vec![*to]),
        Step::BindDim { from, .. } => (vec![*from], vec![]),
        Step::Repack { from, to, .. } | Step::NonZero { from, to, .. } => (vec![*from], vec![*to]),
        Step::Strings { args, to, .. } => (args.clone(), vec![*to]),
        Step::SplitStrings {
            from,
            pieces,
            counts,
            ..
        } => (vec![*from], vec![*pieces, *counts]),
        Step::If { cond, .. } => (vec![*cond], vec![]),
        // The iteration and the body's condition are seen to in each iteration.
        Step::Loop(l) => (vec![l.trip, l.cond], vec![]),
    }
}

/// What the steps of an entry touch, blocks included.
#[derive(Default)]
struct Touched {
    host: Vec<u32>,
    device: Vec<u32>,
    /// From and to.
    copies: Vec<(u32, u32)>,
}

impl Touched {
    fn walk(&mut self, steps: &[Step]) {
        for step in steps {
            let (reads, writes) = host_access(step);
            self.host.extend(reads);
            self.host.extend(writes);
            match step {
                Step::Launch(l) | Step::TopK { launch: l, .. } => {
                    self.device.extend(l.args.iter().map(|a| a.0))
                }
                Step::Copy { from, to, .. } => self.copies.push((*from, *to)),
                Step::If {
                    then, otherwise, ..
                } => {
                    self.walk(then);
                    self.walk(otherwise);
                }
                Step::Loop(l) => {
                    self.host.extend([l.iteration, l.body_cond]);
                    let moved = l.carried.iter().chain(&l.scanned);
                    self.copies.extend(moved.map(|c| (c.0, c.1)));
                    self.walk(&l.body);
                }
                Step::WriteDims { .. }
                | Step::BindDim { .. }
                | Step::SetDims { .. }
                | Step::Check { .. }
                | Step::Repack { .. }
                | Step::NonZero { .. }
                | Step::Strings { .. }
                | Step::SplitStrings { .. } => {}
            }
        }
    }
}

impl Spaces {
    /// Decides for an entry whose kernels run on a device.
    pub(crate) fn of(e: &Entry, state: impl Fn(u32) -> bool) -> Spaces {
        let mut s = Spaces::default();
        let mut by_global = std::collections::BTreeMap::new();
        for b in &e.buffers {
            let next = s.of.len() as u32;
            let cell = match b.place {
                Place::View { of, .. } => s.cell[of as usize],
                Place::Global(g) => *by_global.entry(g).or_insert(next),
                Place::Input | Place::Output | Place::Arena => next,
            };
            if cell == next {
                let global = match b.place {
                    Place::Global(g) => Some(g),
                    _ => None,
                };
                // What the caller gives and the mapped file lie on the host as they are.
                let given = match b.place {
                    Place::Input => true,
                    Place::Global(g) => !state(g),
                    _ => false,
                };
                s.global.push(global);
                s.of.push(Space {
                    host: given,
                    device: false,
                });
            }
            s.cell.push(cell);
        }
        let mut touched = Touched::default();
        touched.walk(&e.steps);
        let cell = |s: &Spaces, b: u32| s.cell[b as usize] as usize;
        for &b in &touched.device {
            let c = cell(&s, b);
            s.of[c].device = true;
        }
        for &b in &touched.host {
            let c = cell(&s, b);
            s.of[c].host = true;
        }
        let copies: Vec<(usize, usize)> = (touched.copies.iter())
            .map(|&(from, to)| (cell(&s, from), cell(&s, to)))
            .collect();
        s.follow_copies(&copies);
        // What nothing but copies of nothing touches, and what no step touches at all.
        for space in s.of.iter_mut().filter(|c| c.nowhere()) {
            space.host = true;
        }
        s.leaves = s.of.iter().map(|space| space.host).collect();
        for p in &e.outputs {
            let c = cell(&s, p.buffer);
            s.leaves[c] = true;
        }
        s
    }

    /// What only copies touch is where the other side is, on the device if it can be.
    fn follow_copies(&mut self, copies: &[(usize, usize)]) {
        loop {
            let mut changed = false;
            for &(from, to) in copies {
                for (a, b) in [(from, to), (to, from)] {
                    if self.of[b].nowhere() && !self.of[a].nowhere() {
                        let device = self.of[a].device;
                        self.of[b] = Space {
                            host: !device,
                            device,
                        };
                        changed = true;
                    }
                }
            }
            if !changed {
                return;
            }
        }
    }

    /// Where a buffer is.
    pub(crate) fn space(&self, buffer: u32) -> Space {
        self.of[self.cell[buffer as usize] as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Buffer, Launch, Loop};
    use kiln_ir::Dim;

    fn buffer(place: Place) -> Buffer {
        Buffer {
            bytes: Dim::from(8),
            place,
            live: (0, 9),
        }
    }

    fn launch(args: &[u32]) -> Step {
        Step::Launch(Launch {
            variants: vec![],
            args: args.iter().map(|&b| (b, Dim::ZERO)).collect(),
            writes: 1,
            label: String::new(),
            flops: Dim::ZERO,
            bytes: Dim::ZERO,
        })
    }

    fn copy(from: u32, to: u32) -> Step {
        let bytes = Dim::from(8);
        Step::Copy { from, to, bytes }
    }

    fn spaces(places: Vec<Place>, steps: Vec<Step>) -> (Spaces, Vec<&'static str>) {
        let entry = Entry {
            name: "f".into(),
            inputs: vec![],
            outputs: vec![],
            guards: vec![],
            buffers: places.into_iter().map(buffer).collect(),
            steps,
        };
        let s = Spaces::of(&entry, |g| g == 1);
        let name = |b| match s.space(b) {
            Space {
                host: true,
                device: true,
            } => "both",
            Space { host: true, .. } => "host",
            Space { device: true, .. } => "device",
            _ => "nowhere",
        };
        let names = (0..entry.buffers.len() as u32).map(name).collect();
        (s, names)
    }

    #[test]
    fn kernels_and_the_host_decide_and_copies_follow() {
        let view = |of| Place::View {
            of,
            offset: Dim::ZERO,
        };
        let places = vec![
            Place::Input,
            Place::Arena,
            view(1),
            Place::Arena,
            Place::Output,
            Place::Arena,
        ];
        let steps = vec![launch(&[0, 1]), copy(2, 3), copy(3, 4)];
        let (s, names) = spaces(places, steps);
        assert_eq!(
            names,
            ["both", "device", "device", "device", "device", "host"]
        );
        assert_eq!(s.cell, [0, 1, 1, 2, 3, 4]);
    }

    #[test]
    fn what_only_the_host_touches_stays_there() {
        let places = vec![
            Place::Input,
            Place::Arena,
            Place::Arena,
            Place::Arena,
            Place::Arena,
            Place::Arena,
            Place::Arena,
        ];
        let l = Loop {
            trip: 1,
            cond: 0,
            iteration: 2,
            body_cond: 3,
            body: vec![launch(&[2, 4])],
            carried: vec![(4, 5, Dim::from(8))],
            scanned: vec![(3, 6, Dim::from(8))],
            symbol: None,
            sizes: vec![],
        };
        let dims = Step::WriteDims {
            to: 1,
            values: vec![],
        };
        let (_, names) = spaces(places, vec![dims, Step::Loop(l)]);
        let want = ["host", "host", "both", "host", "device", "device", "host"];
        assert_eq!(names, want);
    }

    #[test]
    fn buffers_of_one_global_are_one_cell() {
        let places = vec![
            Place::Global(1),
            Place::Arena,
            Place::Global(1),
            Place::Global(0),
        ];
        let (s, names) = spaces(places, vec![launch(&[0, 3, 1]), copy(1, 2)]);
        assert_eq!(s.cell, [0, 1, 0, 2]);
        assert_eq!(names, ["device", "device", "device", "both"]);
        assert_eq!(s.global, [Some(1), None, Some(0)]);
    }
}

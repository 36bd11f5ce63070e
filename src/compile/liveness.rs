//! From when to when each buffer of a plan is needed.

use super::lower::FunctionLowerer;
use kiln_runtime::plan::Step;

impl FunctionLowerer<'_, '_> {
    /// Numbers the steps and gives every buffer its first and last.
    pub(super) fn liveness(&mut self, steps: &[Step], returned: &[u32]) {
        let mut live: Vec<Option<(u32, u32)>> = vec![None; self.buffers.len()];
        let mut at = 0;
        self.walk(steps, &mut at, &mut live);
        for &b in returned {
            self.touch(b, at + 1, &mut live);
        }
        for (b, l) in self.buffers.iter_mut().zip(live) {
            b.live = l.unwrap_or((0, 0));
        }
    }

    fn touch(&self, b: u32, at: u32, live: &mut [Option<(u32, u32)>]) {
        let base = self.base(b) as usize;
        live[base] = Some(live[base].map_or((at, at), |(first, _)| (first, at)));
    }

    fn walk(&self, steps: &[Step], at: &mut u32, live: &mut Vec<Option<(u32, u32)>>) {
        for step in steps {
            *at += 1;
            let touch = |bs: &[u32], at: u32, live: &mut Vec<Option<(u32, u32)>>| {
                bs.iter().for_each(|&b| self.touch(b, at, live));
            };
            match step {
                Step::Launch(l) | Step::TopK { launch: l, .. } => {
                    let bs: Vec<u32> = l.args.iter().map(|a| a.0).collect();
                    touch(&bs, *at, live);
                }
                Step::WriteDims { to, .. } => touch(&[*to], *at, live),
                Step::Copy { from, to, .. } => touch(&[*from, *to], *at, live),
                Step::SetDims { .. } | Step::Check { .. } => {}
                Step::Repack { from, to, .. } => touch(&[*from, *to], *at, live),
                Step::BindDim { from, .. } => touch(&[*from], *at, live),
                Step::NonZero { from, to, .. } => touch(&[*from, *to], *at, live),
                Step::Strings { args, to, .. } => {
                    touch(args, *at, live);
                    touch(&[*to], *at, live);
                }
                Step::SplitStrings {
                    from,
                    pieces,
                    counts,
                    ..
                } => touch(&[*from, *pieces, *counts], *at, live),
                Step::If {
                    cond,
                    then,
                    otherwise,
                } => {
                    touch(&[*cond], *at, live);
                    self.walk(then, at, live);
                    self.walk(otherwise, at, live);
                }
                Step::Loop(l) => {
                    let start = *at;
                    let ports: Vec<u32> = [l.trip, l.cond, l.iteration, l.body_cond]
                        .into_iter()
                        .chain(l.carried.iter().chain(&l.scanned).flat_map(|c| [c.0, c.1]))
                        .collect();
                    touch(&ports, start, live);
                    self.walk(&l.body, at, live);
                    *at += 1;
                    touch(&ports, *at, live);
                    // What lived before the loop and is used in it lives through it.
                    for slot in live.iter_mut().flatten() {
                        if slot.0 < start && slot.1 >= start {
                            slot.1 = *at;
                        }
                    }
                }
            }
        }
    }
}

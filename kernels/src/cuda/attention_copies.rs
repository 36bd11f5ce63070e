//! How queries, keys and values come to [`attention_groups`](super::attention_groups) by
//! `cp.async`, which serves every stride and start: the form for all launches.
//!
//! A thread that copied waits for its own copies, makes them seen by the tensor cores
//! (`fence.proxy.async`), and its warp arrives at the place's barrier. Arrivals by the copies
//! themselves (`cp.async.mbarrier.arrive.noinc`) would do without the wait, which delays
//! nobody, and leave the fence to every thread that multiplies, in the loop that must not
//! stall.

use super::attention_groups::{Attend, Bar, Part, Turn, Walk, first_lane};
use super::attention_rows::{Block, Rows};
use kiln_codegen::Emitter;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{Pred, Reg};

impl Attend<'_> {
    /// What the group that copies does. It publishes a part when the next one's copies have
    /// been started: so two copies are under way, and whoever multiplies never waits for a
    /// part that is held back by one which waits for him.
    pub(super) fn copy_all(&self, e: &mut Emitter, b: &Block, walk: &Walk) {
        let [q, k, v] = Rows::all(e, &self.softmax.cx, self.softmax.spec, b);
        let first = first_lane(e);
        self.shape.queries().copy(e, &q, b.first, self.shared);
        let (zero, one) = (e.i64(0), e.i64(1));
        let last = e.sub(walk.parts, one);
        e.for_loop(zero, walk.parts, one, &[], |e, part, _| {
            let turn = self.turn(e, part);
            let before = e.sub(part, one);
            let before = self.turn(e, before);
            let later = e.cmp(Cmp::Gt, part, zero, false);
            let key0 = self.key(e, walk, part);
            for (which, rows) in [(Part::Keys, &k), (Part::Values, &v)] {
                self.wait(e, Bar::Empty(which), turn);
                let to = self.place(e, which, turn);
                self.shape.part(which).copy(e, rows, key0, to);
                e.kernel_mut().end_copies();
                e.if_then(later, |e| self.publish(e, which, before, 2, first));
            }
            vec![]
        });
        let some = e.cmp(Cmp::Ge, last, zero, false);
        e.if_then(some, |e| {
            let turn = self.turn(e, last);
            self.publish(e, Part::Keys, turn, 1, first);
            self.publish(e, Part::Values, turn, 0, first);
        });
        e.kernel_mut().end_copies();
        e.kernel_mut().wait_copies(0);
    }

    /// Tells those who multiply of a part, the last but `under_way` that were copied.
    fn publish(&self, e: &mut Emitter, which: Part, turn: Turn, under_way: u32, first: Reg<Pred>) {
        let k = e.kernel_mut();
        k.wait_copies(under_way);
        k.fence_shared();
        k.warp_barrier();
        self.arrive(e, Bar::Full(which), turn, first);
    }
}

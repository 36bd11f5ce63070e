//! Packing of a B that does not lie in rows, panel by panel, into scratch.

use super::MatMulSpec;
use crate::lower::memory_elem;
use crate::micro;
use crate::nest::LANES;
use kiln_codegen::{Elem, Emitter, Ty, Val};

impl MatMulSpec {
    /// Copies `k × nr` elements of B whose columns lie in runs into a panel.
    /// Columns beyond the end repeat the last.
    pub(super) fn pack_runs(
        &self,
        e: &mut Emitter,
        (from, column): (Val, Val),
        to: Val,
        k: Val,
        columns: Val,
    ) {
        let elem = memory_elem(self.args[1]);
        let ty = Ty::vector(elem, LANES as u32);
        let nr = e.i64(self.nr);
        let extents = (columns, k, false);
        micro::turn(e, extents, (to, nr), &mut |e, c, i, mask| {
            let at = e.mul(c, column);
            let at = e.add(at, i);
            let p = e.offset(from, at, elem);
            e.load_run(p, ty, mask)
        });
    }

    /// Copies `k × nr` elements of B into a panel; columns beyond the end are 0.
    pub(super) fn pack_panel(
        &self,
        e: &mut Emitter,
        (from, row, column): (Val, Val, Val),
        to: Val,
        k: Val,
        columns: Val,
    ) {
        let elem = memory_elem(self.args[1]);
        let (zero, one, nr) = (e.i64(0), e.i64(1), e.i64(self.nr));
        let lanes = LANES as u32;
        let lane = e.iota(Elem::I64, lanes);
        let steps = e.mul(lane, column);
        let groups: Vec<(i64, Val)> = (0..self.nr / LANES)
            .map(|g| {
                let before = e.i64(g * LANES);
                let count = e.sub(columns, before);
                (g * LANES, e.mask_first(count, lanes))
            })
            .collect();
        e.for_loop(zero, k, one, &[], |e, i, _| {
            let at = e.mul(i, row);
            let source = e.offset(from, at, elem);
            let at = e.mul(i, nr);
            let target = e.offset(to, at, elem);
            for &(j, mask) in &groups {
                let j = e.i64(j);
                let skip = e.mul(j, column);
                let base = e.offset(source, skip, elem);
                let pointers = e.offset(base, steps, elem);
                let v = e.gather(pointers, Ty::vector(elem, lanes), mask);
                let p = e.offset(target, j, elem);
                e.store(v, p);
            }
            vec![]
        });
    }
}

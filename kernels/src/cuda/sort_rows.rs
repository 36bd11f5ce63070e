//! Lanes that a block sorts by itself, in shared memory: bitonic, so that every exchange is
//! between places that follow from the step alone.

use super::THREADS;
use super::sort::{IN_BLOCK, LONG, Sort, WORD};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Val};

impl Sort {
    /// A block sorts a lane.
    pub(super) fn in_block(&self, e: &mut Emitter) {
        let keys = e.kernel_mut().shared(8 * IN_BLOCK as u32, 8);
        let places = e.kernel_mut().shared(4 * IN_BLOCK as u32, 4);
        let (keys, places) = (e.from_word(keys, Elem::Ptr), e.from_word(places, Elem::Ptr));
        let (zero, one, step) = (e.i64(0), e.i64(1), e.i64(i64::from(THREADS)));
        // Bits of the least power of two that is no less, of two at least.
        let log = (1..IN_BLOCK.ilog2()).fold(one, |log, bits| {
            let power = e.i64(1 << bits);
            let more = e.cmp(Cmp::Lt, power, self.n, false);
            let up = e.add(log, one);
            e.select(more, up, log)
        });
        let all = e.op2("arith.shli", one, log);
        let start = self.start(e, self.block, self.n);
        let last = e.sub(self.n, one);
        e.for_loop(self.thread, all, step, &[], |e, i, _| {
            let exists = e.cmp(Cmp::Lt, i, self.n, false);
            let from = e.min(i, last, false);
            let raw = self.element(e, start, from);
            let (key, none) = (self.spec.key(e, raw), e.i64(-1));
            // What is not there comes last.
            let (key, index) = (e.select(exists, key, none), e.select(exists, i, none));
            let to = e.offset(keys, i, Elem::I64);
            e.store(key, to);
            let index = e.cast(index, Elem::I32, true, true);
            let to = e.offset(places, i, Elem::I32);
            e.store(index, to);
            vec![]
        });
        e.kernel_mut().barrier();
        let (end, half) = (e.add(log, one), e.op2("arith.shrui", all, one));
        e.for_loop(one, end, one, &[], |e, size, _| {
            e.for_loop(zero, size, one, &[], |e, less, _| {
                let bits = e.sub(size, one);
                let bits = e.sub(bits, less);
                e.for_loop(self.thread, half, step, &[], |e, i, _| {
                    exchange(e, (keys, places), i, (size, bits));
                    vec![]
                });
                e.kernel_mut().barrier();
                vec![]
            });
            vec![]
        });
        e.for_loop(self.thread, self.k, step, &[], |e, rank, _| {
            let from = e.offset(places, rank, Elem::I32);
            let index = e.load(from, WORD);
            let index = e.cast(index, Elem::I64, true, true);
            self.put(e, self.block, rank, index);
            vec![]
        });
    }
}

/// Puts two elements in order that differ in bit `bits` of their place: ascending where bit
/// `size` of it is 0.
fn exchange(e: &mut Emitter, (keys, places): (Val, Val), i: Val, (size, bits): (Val, Val)) {
    let (zero, one) = (e.i64(0), e.i64(1));
    let apart = e.op2("arith.shli", one, bits);
    let below = e.sub(apart, one);
    let low = e.op2("arith.andi", i, below);
    let high = e.sub(i, low);
    let high = e.add(high, high);
    let a = e.add(high, low);
    let b = e.add(a, apart);
    let side = e.op2("arith.shrui", a, size);
    let side = e.op2("arith.andi", side, one);
    let up = e.cmp(Cmp::Eq, side, zero, false);
    let at = [a, b].map(|x| (e.offset(keys, x, Elem::I64), e.offset(places, x, Elem::I32)));
    let [(ka, ia), (kb, ib)] = at.map(|(k, i)| (e.load(k, LONG), e.load(i, WORD)));
    let less = e.cmp(Cmp::Lt, kb, ka, true);
    let same = e.cmp(Cmp::Eq, kb, ka, false);
    let sooner = e.cmp(Cmp::Lt, ib, ia, true);
    let tie = e.op2("arith.andi", same, sooner);
    let falls = e.op2("arith.ori", less, tie);
    let yes = e.cmp(Cmp::Eq, zero, zero, false);
    let rises = e.op2("arith.xori", falls, yes);
    let swap = e.select(up, falls, rises);
    let (low, high) = (e.select(swap, kb, ka), e.select(swap, ka, kb));
    e.store(low, at[0].0);
    e.store(high, at[1].0);
    let (low, high) = (e.select(swap, ib, ia), e.select(swap, ia, ib));
    e.store(low, at[0].1);
    e.store(high, at[1].1);
}

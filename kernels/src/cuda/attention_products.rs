//! What the groups of [`attention_groups`](super::attention_groups) that multiply do:
//!
//! ```text
//! scores = q·k(0); weights, scale = softmax(scores)
//! for part in 1..:
//!     wait for all products; result *= scale; p = weights, rounded
//!     wait for the turn
//!     start scores = q·k(part); start result += p·v(part - 1)
//!     give the turn to the other group; wait for the scores; weights, scale = softmax(scores)
//! wait; result *= scale; result += p·v(last)
//! ```
//! So a softmax runs while weights before are multiplied by values, and the one wait for
//! these stands at the loop's top, where no assembler can move it above the exponentials.
//! Groups that take turns at starting products get out of step, so that the tensor cores
//! have those of one while the other's exponentials run (section 3.1); FlashAttention-3's
//! code has that for heads up to 128, and so has this.

use super::attention_groups::{Attend, Bar, GROUP_ROWS, GROUPS, Part, Turn, Walk, Way, first_lane};
use super::attention_rows::{self, Block, Place, State, Sums};
use super::nest::long;
use super::panels::{GROUP, Panels};
use crate::expr::ExprId;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, B64, F32, Order, Pred, Reg};
use kiln_codegen::{Emitter, Val};

/// Threads that multiply.
const BOTH: u32 = (GROUPS * GROUP) as u32;

/// Queries of a warp.
const WARP_ROWS: i64 = 16;

/// The largest heads with which groups take turns, and the barriers at which the first and
/// the second group wait for theirs.
const TURNS: i64 = 128;
const LEADS: u32 = 1;
const FOLLOWS: u32 = 2;

/// What a thread that multiplies keeps in registers.
struct Registers {
    /// Products, then weights.
    scores: Vec<Sums>,
    /// What results are to be multiplied by before they go on.
    scales: [Reg<F32>; 2],
    state: State,
}

/// What products read, without their places.
struct Descriptors {
    queries: Reg<B64>,
    keys: Reg<B64>,
    values: Reg<B64>,
    always: Reg<Pred>,
    never: Reg<Pred>,
    /// Whether the group is the first of two.
    leads: Reg<Pred>,
}

/// Products.
impl Attend<'_> {
    /// What a group that multiplies does.
    pub(super) fn attend(&mut self, e: &mut Emitter, b: &Block, walk: &Walk) {
        let (_, many) = self.shape.way.registers();
        e.kernel_mut().registers(many, true);
        let k = e.kernel_mut();
        let (thread, lane) = (k.thread(), k.lane());
        let thread = k.sub(thread, GROUP as i32);
        let warp = k.shr(false, thread, 5);
        let group = k.shr(false, thread, GROUP.trailing_zeros());
        let skip = k.mul(warp, WARP_ROWS as i32);
        let skip = long(e, skip);
        let row = e.add(b.first, skip);
        let p = Place::of(e, b, lane, row);
        let d = self.descriptors(e, group);
        let state = State::start(e, self.shape.values);
        let k = e.kernel_mut();
        let registers = Registers {
            scores: (0..self.shape.keys / 8)
                .map(|_| std::array::from_fn(|_| k.mov(0.0f32)))
                .collect(),
            scales: [k.mov(1.0f32), k.mov(1.0f32)],
            state,
        };
        let zero = e.i64(0);
        let some = e.cmp(Cmp::Gt, walk.parts, zero, false);
        e.if_then(some, |e| self.walk_parts(e, (b, &p), walk, &d, &registers));
        self.softmax.finish(e, (b, &p), &registers.state);
    }

    fn walk_parts(
        &mut self,
        e: &mut Emitter,
        at: (&Block, &Place),
        walk: &Walk,
        d: &Descriptors,
        r: &Registers,
    ) {
        let first = first_lane(e);
        let (zero, one) = (e.i64(0), e.i64(1));
        let turn = self.turn(e, zero);
        if self.shape.way == Way::Tiles {
            let bar = self.queries_bar(e);
            let k = e.kernel_mut();
            let zero = k.mov(0);
            k.barrier_wait(bar, zero);
        }
        self.wait(e, Bar::Full(Part::Keys), turn);
        self.multiply_keys(e, d, turn, r);
        e.kernel_mut().wait_products(0);
        self.arrive(e, Bar::Empty(Part::Keys), turn, first);
        self.weigh(e, at, walk.low, r, None);
        e.for_loop(one, walk.parts, one, &[], |e, part, _| {
            let before = e.sub(part, one);
            let (turn, before) = (self.turn(e, part), self.turn(e, before));
            e.kernel_mut().wait_products(0);
            // The values of the part before the last have been read.
            let later = e.cmp(Cmp::Gt, part, one, false);
            let later = e.pred(later);
            let arrives = e.kernel_mut().logic("and", later, first);
            self.arrive(e, Bar::Empty(Part::Values), turn, arrives);
            let weights = self.rescale(e, r);
            self.wait(e, Bar::Full(Part::Keys), turn);
            self.await_turn(e, d, part);
            self.multiply_keys(e, d, turn, r);
            self.wait(e, Bar::Full(Part::Values), before);
            self.multiply_values(e, d, before, r, &weights);
            self.give_turn(e, d, walk, part);
            e.kernel_mut().wait_products(1);
            self.arrive(e, Bar::Empty(Part::Keys), turn, first);
            let key0 = self.key(e, walk, part);
            let keys = e.i64(self.shape.keys);
            let end = e.add(key0, keys);
            let from = e.cmp(Cmp::Ge, key0, walk.inner.0, false);
            let to = e.cmp(Cmp::Le, end, walk.inner.1, false);
            let whole = e.op2("arith.andi", from, to);
            let known = self.bounds.conditions().to_vec();
            e.either(
                whole,
                &[],
                self,
                |e, s| {
                    s.weigh(e, at, key0, r, Some(&known));
                    vec![]
                },
                |e, s| {
                    s.weigh(e, at, key0, r, None);
                    vec![]
                },
            );
            vec![]
        });
        e.kernel_mut().wait_products(0);
        let weights = self.rescale(e, r);
        let last = e.sub(walk.parts, one);
        let turn = self.turn(e, last);
        self.wait(e, Bar::Full(Part::Values), turn);
        self.multiply_values(e, d, turn, r, &weights);
        e.kernel_mut().wait_products(0);
    }

    fn takes_turns(&self) -> bool {
        self.shape.features.max(self.shape.values) <= TURNS
    }

    /// Waits until the other group has started its products; for the first one of the first
    /// group there is nothing to wait for.
    fn await_turn(&self, e: &mut Emitter, d: &Descriptors, part: Val) {
        if !self.takes_turns() {
            return;
        }
        let one = e.i64(1);
        let later = e.cmp(Cmp::Gt, part, one, false);
        let later = e.pred(later);
        let k = e.kernel_mut();
        let (waits, follows) = (k.logic("and", later, d.leads), k.not(d.leads));
        k.guarded(waits, |k| k.barrier_of(LEADS, BOTH));
        k.guarded(follows, |k| k.barrier_of(FOLLOWS, BOTH));
    }

    /// Lets the other group start its products; behind the last part the second group has
    /// none to wait for it.
    fn give_turn(&self, e: &mut Emitter, d: &Descriptors, walk: &Walk, part: Val) {
        if !self.takes_turns() {
            return;
        }
        let one = e.i64(1);
        let next = e.add(part, one);
        let more = e.cmp(Cmp::Lt, next, walk.parts, false);
        let more = e.pred(more);
        let k = e.kernel_mut();
        let follows = k.not(d.leads);
        let gives = k.logic("and", more, follows);
        k.guarded(d.leads, |k| k.arrive_of(FOLLOWS, BOTH));
        k.guarded(gives, |k| k.arrive_of(LEADS, BOTH));
    }

    fn descriptors(&self, e: &mut Emitter, group: Reg<B32>) -> Descriptors {
        let (q, k, v) = (
            self.shape.queries(),
            self.shape.part(Part::Keys),
            self.shape.part(Part::Values),
        );
        let (keys_at, values_at) = (self.shape.start(Part::Keys), self.shape.start(Part::Values));
        let kernel = e.kernel_mut();
        let own = kernel.mad(group, (GROUP_ROWS * q.width()) as i32, self.shared);
        let keys = kernel.add(self.shared, keys_at as i32);
        let values = kernel.add(self.shared, values_at as i32);
        let mut descriptor = |at: Reg<B32>, m: Panels, along_k: bool| {
            let wide = kernel.extend(at, false);
            let address = kernel.shr(false, wide, 4);
            kernel.bitwise("or", address, m.descriptor(along_k))
        };
        let (queries, keys, values) = (
            descriptor(own, q, true),
            descriptor(keys, k, true),
            descriptor(values, v, false),
        );
        let zero: Reg<B32> = kernel.mov(0);
        Descriptors {
            queries,
            keys,
            values,
            always: kernel.compare(Order::Eq, zero, 0, false),
            never: kernel.compare(Order::Ne, zero, 0, false),
            leads: kernel.compare(Order::Eq, group, 0, false),
        }
    }

    /// The descriptor of a part's place.
    fn placed(&self, e: &mut Emitter, which: Part, first: Reg<B64>, turn: Turn) -> Reg<B64> {
        let size = self.shape.part(which).bytes() >> 4;
        let k = e.kernel_mut();
        let stage = k.extend(turn.stage, false);
        k.mad(stage, size, first)
    }

    /// Starts `scores = q·k` of a part.
    fn multiply_keys(&self, e: &mut Emitter, d: &Descriptors, turn: Turn, r: &Registers) {
        let (q, k) = (self.shape.queries(), self.shape.part(Part::Keys));
        let keys = self.placed(e, Part::Keys, d.keys, turn);
        let scores = r.scores.as_flattened();
        let kernel = e.kernel_mut();
        kernel.fence_group();
        for i in 0..self.shape.features / 16 {
            let a = kernel.add(d.queries, q.column(i) >> 4);
            let b = kernel.add(keys, k.column(i) >> 4);
            let add = if i == 0 { d.never } else { d.always };
            kernel.multiply_group(self.half, scores, a, b, add);
        }
        kernel.end_products();
    }

    /// Starts `result += weights · v` of a part.
    fn multiply_values(
        &self,
        e: &mut Emitter,
        d: &Descriptors,
        turn: Turn,
        r: &Registers,
        weights: &[[Reg<B32>; 4]],
    ) {
        let v = self.shape.part(Part::Values);
        let values = self.placed(e, Part::Values, d.values, turn);
        let result = r.state.result.as_flattened();
        let kernel = e.kernel_mut();
        kernel.fence_group();
        for (i, &a) in (0..).zip(weights) {
            let b = kernel.add(values, v.below(i) >> 4);
            kernel.multiply_group_from(self.half, result, a, (b, true), d.always);
        }
        kernel.end_products();
    }

    /// Scores to weights, in place.
    fn weigh(
        &mut self,
        e: &mut Emitter,
        at: (&Block, &Place),
        key0: Val,
        r: &Registers,
        known: Option<&[ExprId]>,
    ) {
        let scores = self.softmax.scores(e, at, key0, &r.scores, known);
        for (i, scores) in scores.iter().enumerate() {
            let (weights, scale) = self.softmax.weights(e, &r.state, i, scores);
            let k = e.kernel_mut();
            for (j, w) in weights.into_iter().enumerate() {
                k.set(r.scores[j / 2][2 * i + j % 2], w);
            }
            k.set(r.scales[i], scale);
        }
    }

    /// Results as the latest maxima want them; weights as fragments of A.
    fn rescale(&self, e: &mut Emitter, r: &Registers) -> Vec<[Reg<B32>; 4]> {
        let k = e.kernel_mut();
        for (i, &scale) in r.scales.iter().enumerate() {
            r.state.rescale(k, i, scale);
        }
        attention_rows::fragments(k, self.half, &r.scores)
    }
}

//! Attention on Hopper's tensor cores (`wgmma`), of f16 or bf16 with sums in f32, in the
//! shape of FlashAttention-3 (Shah et al. 2024).
//!
//! A block has three groups of four warps and takes 128 queries of one head. One group
//! copies: the queries, then parts of keys and of values in turn, two places each. It needs
//! few registers and gives the others away. Two groups multiply, 64 queries each:
//!
//! ```text
//! scores = q·k(0); weights, scale = softmax(scores)
//! for part in 1..:
//!     wait for all products; result *= scale; p = weights, rounded
//!     start scores = q·k(part); start result += p·v(part - 1)
//!     wait for the scores; weights, scale = softmax(scores)
//! wait; result *= scale; result += p·v(last)
//! ```
//! So a softmax runs while weights before are multiplied by values, and the one wait for
//! these stands at the loop's top, where no assembler can move it above the exponentials.
//!
//! Copies are `cp.async`, which serves every stride and start. A thread that copied waits for
//! its own copies, makes them seen by the tensor cores (`fence.proxy.async`), and its warp
//! arrives at the place's barrier. Arrivals by the copies themselves
//! (`cp.async.mbarrier.arrive.noinc`) would do without the wait, which delays nobody, and
//! leave the fence to every thread that multiplies, in the loop that must not stall.

use super::attention_rows::{self, Block, Place, Rows, Softmax, State, Sums};
use super::nest::{divide, long};
use super::panels::{GROUP, Panels};
use super::{GpuKernel, attention};
use crate::Size;
use crate::attention::AttentionSpec;
use crate::expr::ExprId;
use crate::softmax::Bounds;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, B64, F32, Half, Order, Pred, Reg};
use kiln_codegen::{Emitter, GpuTarget, Val};

/// Groups of four warps that multiply, and threads of a block.
const GROUPS: i64 = 2;
const THREADS: i64 = GROUP * (1 + GROUPS);

/// Queries of a group, of a warp, and of a block.
const GROUP_ROWS: i64 = 64;
const WARP_ROWS: i64 = 16;
const QUERIES: i64 = GROUPS * GROUP_ROWS;

/// Places of parts of keys, and of values.
const STAGES: i64 = 2;

/// Registers of a thread that copies, and of one that multiplies: together the 168 that each
/// of three groups starts with.
const FEW: u32 = 40;
const MANY: u32 = 232;
const _: () = assert!(FEW + GROUPS as u32 * MANY == 3 * 168);

/// Of the latter, those that scores, rounded weights and results may have.
const ROOM: i64 = 188;

/// What else a thread keeps.
const OTHERS: i64 = 32;

/// The most keys of a part.
const KEYS: i64 = 128;

/// The largest heads.
const MOST: i64 = 256;

/// Whether the kernel serves the problem, and serves it best: few queries leave most of a
/// block idle.
pub(super) fn serves(spec: &AttentionSpec, target: &GpuTarget) -> Option<Half> {
    let half = attention_rows::halves(spec)?;
    let few = spec.block <= 16 || matches!(spec.queries, Size::Const(n) if n <= GROUP_ROWS);
    let small = spec.features <= MOST && spec.values <= MOST;
    let fits = Shape::of(spec).bytes() <= i64::from(target.shared_per_block);
    (target.is_hopper() && small && fits && !few).then_some(half)
}

/// Features and values, to whole instructions, and keys of a part.
#[derive(Clone, Copy)]
struct Shape {
    features: i64,
    values: i64,
    keys: i64,
}

/// What lies in shared memory in as many places as there are stages.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Keys,
    Values,
}

impl Shape {
    fn of(spec: &AttentionSpec) -> Shape {
        let up = |n: i64| (n + 15) / 16 * 16;
        let (features, values) = (up(spec.features), up(spec.values));
        // Of a thread's row of results half a register each, of its scores too, and of
        // weights that are being multiplied a quarter.
        let (room, most) = match attention_rows::demanding(spec) {
            // Addresses and what is read, or steps of functions.
            true => (ROOM - 24, KEYS / 2),
            false => (ROOM, KEYS),
        };
        let keys = (room - values / 2) * 4 / 3 / 16 * 16;
        Shape {
            features,
            values,
            keys: keys.clamp(16, most),
        }
    }

    /// Registers of scores, of weights that are being multiplied and of results.
    fn registers(self) -> i64 {
        self.keys / 2 + self.keys / 4 + self.values / 2
    }

    /// Eights of keys whose scores are worked out at once where they are demanding: an address
    /// and a number each for two keys of two queries, and as much again that the assembler
    /// has under way.
    fn eights(self) -> usize {
        let free = i64::from(MANY) - self.registers() - OTHERS;
        (free / 24).max(1) as usize
    }

    fn queries(self) -> Panels {
        Panels {
            rows: QUERIES,
            elements: self.features,
        }
    }

    fn part(self, which: Part) -> Panels {
        let elements = match which {
            Part::Keys => self.features,
            Part::Values => self.values,
        };
        Panels {
            rows: self.keys,
            elements,
        }
    }

    /// Where the first place of keys or values is, behind the queries.
    fn start(self, which: Part) -> i64 {
        let keys = self.queries().bytes();
        match which {
            Part::Keys => keys,
            Part::Values => keys + STAGES * self.part(Part::Keys).bytes(),
        }
    }

    /// Where barriers are: those of copied parts, then those of parts that have been read.
    fn barriers(self) -> i64 {
        self.start(Part::Values) + STAGES * self.part(Part::Values).bytes()
    }

    fn bytes(self) -> i64 {
        self.barriers() + 8 * 4 * STAGES
    }
}

pub(super) fn emit(spec: &AttentionSpec, half: Half, name: &str, target: &GpuTarget) -> GpuKernel {
    let shape = Shape::of(spec);
    let block = (THREADS, QUERIES);
    attention::kernel(spec, (name, target), block, shape.bytes(), |e, cx, _| {
        let shared = e.kernel_mut().dynamic_shared();
        let attend = Attend {
            softmax: Softmax {
                spec,
                cx,
                pause: attention_rows::demanding(spec).then(|| shape.eights()),
            },
            half,
            shape,
            shared,
            bounds: Bounds::of(&spec.exprs, spec.score),
        };
        attend.write(e);
    })
}

struct Attend<'a> {
    softmax: Softmax<'a>,
    half: Half,
    shape: Shape,
    shared: Reg<B32>,
    bounds: Bounds,
}

/// The keys that a block walks.
struct Walk {
    /// The first one, and parts.
    low: Val,
    parts: Val,
    /// Between these all queries see all keys, as far as the bounds go.
    inner: (Val, Val),
}

/// Whose turn it is: a part's place, and the parity of the phases of its barriers.
#[derive(Clone, Copy)]
struct Turn {
    stage: Reg<B32>,
    parity: Reg<B32>,
}

/// Which of a part's barriers.
#[derive(Clone, Copy, PartialEq)]
enum Bar {
    /// Its copies are there.
    Full(Part),
    /// It has been read.
    Empty(Part),
}

impl Attend<'_> {
    fn write(mut self, e: &mut Emitter) {
        let spec = self.softmax.spec;
        let b = Block::of(e, &self.softmax.cx, spec, QUERIES);
        let walk = self.walk(e, &b);
        self.barriers(e);
        let thread = e.kernel_mut().thread();
        let copies = e
            .kernel_mut()
            .compare(Order::Lt, thread, GROUP as i32, false);
        let copies = e.from_pred(copies);
        e.either(
            copies,
            &[],
            &mut self,
            |e, s| {
                s.copy_all(e, &b, &walk);
                vec![]
            },
            |e, s| {
                s.attend(e, &b, &walk);
                vec![]
            },
        );
    }

    fn walk(&mut self, e: &mut Emitter, b: &Block) -> Walk {
        let (left, high) = (e.sub(b.queries, b.first), e.i64(QUERIES));
        let rows = e.min(left, high, false);
        let at = [b.batch, b.head, b.first, rows];
        let cx = &mut self.softmax.cx;
        let (low, end) = self.bounds.range(e, cx, at, b.keys);
        let inner = self.bounds.inner(e, cx, at, b.keys);
        let (step, known) = (e.i64(self.shape.keys), Some(self.shape.keys));
        let (low, _) = divide(e, low, step, known);
        let low = e.mul(low, step);
        let (less, zero) = (e.i64(self.shape.keys - 1), e.i64(0));
        let left = e.sub(end, low);
        let left = e.max(left, zero, false);
        let up = e.add(left, less);
        let (parts, _) = divide(e, up, step, known);
        Walk { low, parts, inner }
    }

    /// Makes the barriers: a warp that copies arrives once, a warp that multiplies too.
    fn barriers(&self, e: &mut Emitter) {
        let k = e.kernel_mut();
        let thread = k.thread();
        let first = k.compare(Order::Eq, thread, 0, false);
        let at = k.add(self.shared, self.shape.barriers() as i32);
        k.if_then(first, |k| {
            for i in 0..4 * STAGES as i32 {
                let warps = match i < 2 * STAGES as i32 {
                    true => GROUP / 32,
                    false => GROUPS * GROUP / 32,
                };
                let bar = k.add(at, 8 * i);
                k.barrier_init(bar, warps as u32);
            }
        });
        k.barrier();
    }

    fn turn(&self, e: &mut Emitter, part: Val) -> Turn {
        let part = e.long(part);
        let k = e.kernel_mut();
        let part = k.low(part);
        let round = k.shr(false, part, STAGES.trailing_zeros());
        Turn {
            stage: k.bitwise("and", part, STAGES as i32 - 1),
            parity: k.bitwise("and", round, 1),
        }
    }

    fn bar(&self, e: &mut Emitter, which: Bar, turn: Turn) -> Reg<B32> {
        let kind = match which {
            Bar::Full(Part::Keys) => 0,
            Bar::Full(Part::Values) => 1,
            Bar::Empty(Part::Keys) => 2,
            Bar::Empty(Part::Values) => 3,
        };
        let start = self.shape.barriers() + 8 * STAGES * kind;
        let k = e.kernel_mut();
        let at = k.add(self.shared, start as i32);
        k.mad(turn.stage, 8, at)
    }

    /// Waits until a part has been copied; or, to copy, until the one before in its place
    /// has been read (of the first ones there is none, and the other parity is past).
    fn wait(&self, e: &mut Emitter, which: Bar, turn: Turn) {
        let bar = self.bar(e, which, turn);
        let k = e.kernel_mut();
        let parity = match which {
            Bar::Full(_) => turn.parity,
            Bar::Empty(_) => k.bitwise("xor", turn.parity, 1),
        };
        k.barrier_wait(bar, parity);
    }

    /// The warp arrives, by the lane that is `first`.
    fn arrive(&self, e: &mut Emitter, which: Bar, turn: Turn, first: Reg<Pred>) {
        let bar = self.bar(e, which, turn);
        e.kernel_mut().guarded(first, |k| k.barrier_arrive(bar));
    }
}

/// Whether the thread is its warp's first.
fn first_lane(e: &mut Emitter) -> Reg<Pred> {
    let k = e.kernel_mut();
    let lane = k.lane();
    k.compare(Order::Eq, lane, 0, false)
}

/// Copies.
impl Attend<'_> {
    /// What the group that copies does. It publishes a part when the next one's copies have
    /// been started: so two copies are under way, and whoever multiplies never waits for a
    /// part that is held back by one which waits for him.
    fn copy_all(&self, e: &mut Emitter, b: &Block, walk: &Walk) {
        // Without it ptxas ignores that registers change hands.
        e.kernel_mut().set_resident(1);
        e.kernel_mut().registers(FEW, false);
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
            let keys = e.i64(self.shape.keys);
            let skip = e.mul(part, keys);
            let key0 = e.add(walk.low, skip);
            for (which, rows) in [(Part::Keys, &k), (Part::Values, &v)] {
                self.wait(e, Bar::Empty(which), turn);
                let panels = self.shape.part(which);
                let k = e.kernel_mut();
                let to = k.add(self.shared, self.shape.start(which) as i32);
                let to = k.mad(turn.stage, panels.bytes() as i32, to);
                panels.copy(e, rows, key0, to);
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
}

/// Products.
impl Attend<'_> {
    /// What a group that multiplies does.
    fn attend(&mut self, e: &mut Emitter, b: &Block, walk: &Walk) {
        e.kernel_mut().registers(MANY, true);
        let k = e.kernel_mut();
        let (thread, lane) = (k.thread(), k.lane());
        let thread = k.sub(thread, GROUP as i32);
        let warp = k.shr(false, thread, 5);
        let group = k.shr(false, thread, GROUP.trailing_zeros());
        let skip = k.mul(warp, WARP_ROWS as i32);
        let skip = long(e, skip);
        let row = e.add(b.first, skip);
        let p = Place::of(e, lane, row);
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
            self.multiply_keys(e, d, turn, r);
            self.wait(e, Bar::Full(Part::Values), before);
            self.multiply_values(e, d, before, r, &weights);
            e.kernel_mut().wait_products(1);
            self.arrive(e, Bar::Empty(Part::Keys), turn, first);
            let keys = e.i64(self.shape.keys);
            let skip = e.mul(part, keys);
            let key0 = e.add(walk.low, skip);
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

//! What attention on tensor cores does with the sums of products in registers, which `mma`
//! and `wgmma` leave alike: of every eight columns a thread has two neighbours in two rows,
//! eight rows apart, and the four lanes of a row are neighbours.

use super::attention::{exponential, larger};
use super::gemm::coordinates;
use super::nest::{divide, long};
use crate::Size;
use crate::attention::AttentionSpec;
use crate::expr::{ExprId, Node};
use crate::lower::{ExprCx, convert, memory_elem};
use crate::matmul::advance;
use kiln_codegen::emit::Cmp;
use kiln_codegen::ptx::{B32, F32, Half, Kernel, Reg};
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::{BinaryFn, DType};

const SINGLE: Ty = Ty::scalar(Elem::F32);
const WORD: Ty = Ty::scalar(Elem::I32);

/// Sums of eight columns: two of a row, two of the row eight below.
pub(super) type Sums = [Reg<F32>; 4];

/// The halves of attention whose rows of queries, keys and values have neighbours together.
pub(super) fn halves(spec: &AttentionSpec) -> Option<Half> {
    let half = match spec.args[0] {
        DType::F16 => Half::F16,
        DType::BF16 => Half::Bf16,
        _ => return None,
    };
    let alike = spec.args[..3].iter().all(|&t| t == spec.args[0]);
    let runs = [spec.q[3], spec.k[3], spec.v[3]] == [Size::ONE; 3];
    (alike && runs).then_some(half)
}

/// Which queries of which heads a block has.
pub(super) struct Block {
    pub batch: Val,
    /// The head; the first one, where rows are those of several.
    pub head: Val,
    pub key_head: Val,
    /// The block's first row.
    pub first: Val,
    /// Rows in all: queries of the head, or of each head in turn.
    pub rows: Val,
    pub queries: Val,
    pub keys: Val,
    /// Whether rows are those of all heads that share a key head.
    pub packed: bool,
}

impl Block {
    /// Of blocks of so many queries.
    pub(super) fn of(e: &mut Emitter, cx: &ExprCx, spec: &AttentionSpec, many: i64) -> Block {
        let [batch, heads, queries, group] =
            [spec.batch, spec.heads, spec.queries, spec.group].map(|s| cx.size(e, s));
        let (at, first) = place(e, [batch, heads], queries, many);
        let (key_head, _) = divide(e, at[1], group, spec.group.as_const());
        Block {
            batch: at[0],
            head: at[1],
            key_head,
            first,
            rows: queries,
            queries,
            keys: cx.size(e, spec.keys),
            packed: false,
        }
    }

    /// Of blocks of so many rows, which are the queries of a key head's first head, then
    /// those of its second one, and so on.
    pub(super) fn packed(e: &mut Emitter, cx: &ExprCx, spec: &AttentionSpec, many: i64) -> Block {
        let [batch, heads, queries, group] =
            [spec.batch, spec.heads, spec.queries, spec.group].map(|s| cx.size(e, s));
        let (key_heads, _) = divide(e, heads, group, spec.group.as_const());
        let rows = e.mul(group, queries);
        let (at, first) = place(e, [batch, key_heads], rows, many);
        Block {
            batch: at[0],
            head: e.mul(at[1], group),
            key_head: at[1],
            first,
            rows,
            queries,
            keys: cx.size(e, spec.keys),
            packed: true,
        }
    }
}

/// Batch and head of this block of a grid, and its first row.
fn place(e: &mut Emitter, outer: [Val; 2], rows: Val, many: i64) -> (Vec<Val>, Val) {
    let x = e.kernel_mut().block(0);
    let x = long(e, x);
    let (less, high) = (e.i64(many - 1), e.i64(many));
    let up = e.add(rows, less);
    let (blocks, _) = divide(e, up, high, Some(many));
    let (rest, block) = divide(e, x, blocks, None);
    (coordinates(e, rest, &outer), e.mul(block, high))
}

/// Head and query of a row, of so many queries a head: of few, so that words do.
fn split(e: &mut Emitter, row: Val, queries: Val) -> (Val, Val) {
    let [row, queries] = [row, queries].map(|x| e.cast(x, Elem::I32, false, false));
    let (head, query) = (
        e.op2("arith.divui", row, queries),
        e.op2("arith.remui", row, queries),
    );
    (
        e.cast(head, Elem::I64, false, false),
        e.cast(query, Elem::I64, false, false),
    )
}

/// Rows that are copied to shared memory.
pub(super) struct Rows {
    /// The head's first element.
    pub base: Val,
    /// Elements from row to row; of those of several heads, from query to query.
    pub step: Val,
    /// Of rows of several heads: queries of a head, and elements from head to head.
    heads: Option<(Val, Val)>,
    /// How many there are.
    pub count: Val,
    /// Elements of a row.
    pub width: i64,
    /// Whether rows start at multiples of 16 bytes.
    pub aligned: Val,
}

impl Rows {
    /// The rows of a head of buffer `arg`.
    pub(super) fn of(
        e: &mut Emitter,
        cx: &ExprCx,
        (arg, strides, width): (usize, &[Size; 4], i64),
        (batch, head): (Val, Val),
        count: Val,
    ) -> Rows {
        let zero = e.i64(0);
        let at = advance(e, cx, zero, batch, strides[0]);
        let at = advance(e, cx, at, head, strides[1]);
        let base = e.offset(cx.args[arg], at, Elem::I16);
        let step = cx.size(e, strides[2]);
        let r = e.long(base);
        let address = e.from_long(r, Elem::I64);
        let two = e.i64(2);
        let bytes = e.mul(step, two);
        let bits = e.op2("arith.ori", address, bytes);
        Rows {
            base,
            step,
            heads: None,
            count,
            width,
            aligned: is_aligned(e, bits),
        }
    }

    /// The same of several heads, so far apart, of so many queries.
    fn of_heads(self, e: &mut Emitter, (queries, apart): (Val, Val)) -> Rows {
        let two = e.i64(2);
        let bytes = e.mul(apart, two);
        let aligned = is_aligned(e, bytes);
        Rows {
            heads: Some((queries, apart)),
            aligned: e.op2("arith.andi", self.aligned, aligned),
            ..self
        }
    }

    /// Elements from the base to a row.
    pub(super) fn start(&self, e: &mut Emitter, row: Val) -> Val {
        let Some((queries, apart)) = self.heads else {
            return e.mul(row, self.step);
        };
        let (head, query) = split(e, row, queries);
        let (at, skip) = (e.mul(head, apart), e.mul(query, self.step));
        e.add(at, skip)
    }

    /// Queries, keys and values of a block's head.
    pub(super) fn all(e: &mut Emitter, cx: &ExprCx, spec: &AttentionSpec, b: &Block) -> [Rows; 3] {
        let (own, theirs) = ((b.batch, b.head), (b.batch, b.key_head));
        let mut queries = Rows::of(e, cx, (0, &spec.q, spec.features), own, b.rows);
        if b.packed {
            let apart = cx.size(e, spec.q[1]);
            queries = queries.of_heads(e, (b.queries, apart));
        }
        [
            queries,
            Rows::of(e, cx, (1, &spec.k, spec.features), theirs, b.keys),
            Rows::of(e, cx, (2, &spec.v, spec.values), theirs, b.keys),
        ]
    }
}

/// Whether what these bits are of is a multiple of 16 bytes.
fn is_aligned(e: &mut Emitter, bits: Val) -> Val {
    let (mask, zero) = (e.i64(15), e.i64(0));
    let low = e.op2("arith.andi", bits, mask);
    e.cmp(Cmp::Eq, low, zero, false)
}

/// The thread's two rows, and its first column in each eight.
pub(super) struct Place {
    pub rows: [Val; 2],
    pub column: Val,
    /// Heads and queries of the rows; beyond the end the last one's.
    points: [[Val; 2]; 2],
}

impl Place {
    /// Of the lane of a warp whose first row is this one.
    pub(super) fn of(e: &mut Emitter, b: &Block, lane: Reg<B32>, first: Val) -> Place {
        let k = e.kernel_mut();
        let (g, t) = (k.shr(false, lane, 2), k.bitwise("and", lane, 3));
        let t = k.shl(t, 1);
        let (g, column) = (long(e, g), long(e, t));
        let (row, eight, one) = (e.add(first, g), e.i64(8), e.i64(1));
        let rows = [row, e.add(row, eight)];
        let last = e.sub(b.rows, one);
        let points = rows.map(|row| {
            let row = e.min(row, last, false);
            if !b.packed {
                return [b.head, row];
            }
            let (head, query) = split(e, row, b.queries);
            [e.add(b.head, head), query]
        });
        Place {
            rows,
            column,
            points,
        }
    }
}

/// What a thread carries from part to part of the keys, of its two rows.
pub(super) struct State {
    pub max: [Val; 2],
    pub sum: [Val; 2],
    pub result: Vec<Sums>,
}

impl State {
    /// Before the first key, of so many values.
    pub(super) fn start(e: &mut Emitter, values: i64) -> State {
        let (low, zero) = (e.float(SINGLE, f64::NEG_INFINITY), e.float(SINGLE, 0.0));
        let max = e.variables(&[low, low]);
        let sum = e.variables(&[zero, zero]);
        let k = e.kernel_mut();
        State {
            max: [max[0], max[1]],
            sum: [sum[0], sum[1]],
            result: (0..values / 8)
                .map(|_| std::array::from_fn(|_| k.mov(0.0f32)))
                .collect(),
        }
    }

    /// Multiplies what there is of row `i`.
    pub(super) fn rescale(&self, k: &mut Kernel, i: usize, scale: Reg<F32>) {
        for r in &self.result {
            for half in &r[2 * i..2 * i + 2] {
                let scaled = k.mul(*half, scale);
                k.set(*half, scaled);
            }
        }
    }
}

/// Weights, rounded, as fragments of A: sixteen keys after sixteen.
pub(super) fn fragments(k: &mut Kernel, half: Half, weights: &[Sums]) -> Vec<[Reg<B32>; 4]> {
    (weights.chunks_exact(2))
        .map(|pair| {
            // Two eights of keys, of each two neighbours a row.
            let mut two = |eight: usize, row: usize| {
                let own = &pair[eight][2 * row..];
                k.pack_halves(half, own[0], own[1])
            };
            [two(0, 0), two(0, 1), two(1, 0), two(1, 1)]
        })
        .collect()
}

/// From products to weights, and from sums to the result.
pub(super) struct Softmax<'a> {
    pub spec: &'a AttentionSpec,
    pub cx: ExprCx<'a>,
    /// After so many eights of columns the warp meets: across that no assembler moves what
    /// would want more registers than there are.
    pub pause: Option<usize>,
}

/// Whether scores read memory by key or are functions of more than a few instructions, of
/// which an assembler has many under way at once.
pub(super) fn demanding(spec: &AttentionSpec) -> bool {
    let demands = |id: &ExprId| match spec.exprs.node(*id) {
        Node::Load { index, .. } => {
            let moves = index.strides.get(3).is_some_and(|&s| s != Size::ZERO);
            moves || !index.gathers.is_empty()
        }
        Node::Unary(..) => true,
        Node::Binary(f, ..) => matches!(
            f,
            BinaryFn::Div | BinaryFn::Rem | BinaryFn::Mod | BinaryFn::Pow
        ),
        _ => false,
    };
    spec.exprs.reachable(&[spec.score]).iter().any(demands)
}

impl Softmax<'_> {
    /// Scores of the products of the thread's two rows; −∞ where there is no key. Where
    /// these conditions are `known` to hold, every key of the part exists too.
    pub(super) fn scores(
        &mut self,
        e: &mut Emitter,
        (b, p): (&Block, &Place),
        key0: Val,
        products: &[Sums],
        known: Option<&[ExprId]>,
    ) -> [Vec<Val>; 2] {
        let key0 = e.add(key0, p.column);
        // Keys from here on, as a word: no more than matters.
        let (left, most) = (e.sub(b.keys, key0), e.i64(8 * products.len() as i64));
        let left = e.min(left, most, false);
        let left = e.cast(left, Elem::I32, false, false);
        let one = e.int(WORD, 1);
        let last_key = e.sub(left, one);
        let mut out = [vec![], vec![]];
        let assumed = self.cx.assumed.clone();
        for &condition in known.unwrap_or_default() {
            self.cx.assume(condition, true);
        }
        let head = (!b.packed).then_some(b.head);
        self.cx.axes = vec![Some(b.batch), head, None, None];
        self.cx.push();
        self.cx.hoist(e, &[self.spec.score]);
        for (j, sums) in (0..).zip(products) {
            if (self.pause).is_some_and(|n| j > 0 && (j as usize).is_multiple_of(n)) {
                e.kernel_mut().warp_barrier();
            }
            for c in 0..2 {
                let skip = e.int(WORD, 8 * j + c as i64);
                let (skip, exists) = match known {
                    Some(_) => (skip, None),
                    None => {
                        let exists = e.cmp(Cmp::Lt, skip, left, false);
                        (e.min(skip, last_key, false), Some(exists))
                    }
                };
                let skip = e.cast(skip, Elem::I64, false, false);
                let key = e.add(key0, skip);
                let two = self.column(e, &p.points, key, [sums[c], sums[c + 2]], exists);
                out[0].push(two[0]);
                out[1].push(two[1]);
            }
        }
        self.cx.pop();
        self.cx.assumed = assumed;
        out
    }

    /// The scores of one key of two queries.
    fn column(
        &mut self,
        e: &mut Emitter,
        points: &[[Val; 2]; 2],
        key: Val,
        products: [Reg<F32>; 2],
        exists: Option<Val>,
    ) -> [Val; 2] {
        self.cx.axes[3] = Some(key);
        self.cx.push();
        self.cx.hoist(e, &[self.spec.score]);
        let shared = self.cx.axes[1];
        let scores = [0, 1].map(|i| {
            self.cx.axes[1] = Some(points[i][0]);
            self.cx.axes[2] = Some(points[i][1]);
            let product = e.from_single(products[i]);
            self.cx.accs.insert(0, product);
            self.cx.push();
            let score = self.cx.value(e, self.spec.score);
            self.cx.pop();
            self.cx.accs.clear();
            self.cx.axes[2] = None;
            self.cx.axes[1] = shared;
            let Some(exists) = exists else { return score };
            let low = e.float(SINGLE, f64::NEG_INFINITY);
            e.select(exists, score, low)
        });
        self.cx.pop();
        self.cx.axes[3] = None;
        scores
    }

    /// Weights of the scores of row `i`, and what its results so far are to be multiplied
    /// by; its maximum and sum go on.
    pub(super) fn weights(
        &self,
        e: &mut Emitter,
        state: &State,
        i: usize,
        scores: &[Val],
    ) -> (Vec<Reg<F32>>, Reg<F32>) {
        let mut max = scores
            .iter()
            .skip(1)
            .fold(scores[0], |m, &x| larger(e, m, x));
        for mask in [1, 2] {
            let other = e.shuffle_xor(max, mask);
            max = larger(e, max, other);
        }
        let before = state.max[i];
        let now = larger(e, before, max);
        // A query that has seen no key has −∞, whose difference is no number.
        let low = e.float(SINGLE, f64::NEG_INFINITY);
        let none = e.cmp(Cmp::Eq, now, low, false);
        let zero = e.float(SINGLE, 0.0);
        let from = e.select(none, zero, now);
        let scale = exponential(e, before, from);
        let mut sum = e.mul(state.sum[i], scale);
        let mut weights = vec![];
        for &x in scores {
            let w = exponential(e, x, from);
            sum = e.add(sum, w);
            weights.push(e.single(w));
        }
        let scale = e.single(scale);
        e.assign(&[before, state.sum[i]], &[now, sum]);
        (weights, scale)
    }

    /// The sums of the thread's rows, which its lane shares with three others.
    pub(super) fn totals(&self, e: &mut Emitter, state: &State) -> [Val; 2] {
        state.sum.map(|sum| {
            [1, 2].into_iter().fold(sum, |total, mask| {
                let other = e.shuffle_xor(total, mask);
                e.add(total, other)
            })
        })
    }

    /// Divides by the sums and stores.
    pub(super) fn finish(&self, e: &mut Emitter, (b, p): (&Block, &Place), state: &State) {
        let totals = self.totals(e, state);
        for (i, total) in totals.into_iter().enumerate() {
            let inverse = inverse(e, total);
            let exists = e.cmp(Cmp::Lt, p.rows[i], b.queries, false);
            e.if_then(exists, |e| {
                let row = self.row(e, [b.batch, b.head, p.rows[i]]);
                for (j, r) in (0..).zip(&state.result) {
                    for c in 0..2 {
                        let skip = e.i64(8 * j + c);
                        let column = e.add(p.column, skip);
                        let x = e.from_single(r[2 * i + c as usize]);
                        let x = e.mul(x, inverse);
                        let all = 8 * (j + 1) <= self.spec.values;
                        self.store(e, row, column, x, all);
                    }
                }
            });
        }
    }

    /// The offset of a query's result.
    pub(super) fn row(&self, e: &mut Emitter, at: [Val; 3]) -> Val {
        let zero = e.i64(0);
        (at.into_iter().zip(self.spec.out)).fold(zero, |sum, (c, stride)| {
            advance(e, &self.cx, sum, c, stride)
        })
    }

    /// Stores a value of a query's result, where there is such a column if not `all` exist.
    pub(super) fn store(&self, e: &mut Emitter, row: Val, column: Val, x: Val, all: bool) {
        let spec = self.spec;
        let arg = spec.args.len() - 1;
        let t = spec.args[arg];
        let x = convert(e, x, DType::F32, t);
        let at = advance(e, &self.cx, row, column, spec.out[3]);
        let to = e.offset(self.cx.args[arg], at, memory_elem(t));
        if all {
            return e.store(x, to);
        }
        let width = e.i64(spec.values);
        let inside = e.cmp(Cmp::Lt, column, width, false);
        e.if_then(inside, |e| e.store(x, to));
    }
}

/// What results are to be multiplied by; a query that has seen no key has zeros.
pub(super) fn inverse(e: &mut Emitter, total: Val) -> Val {
    let (none, one) = (e.float(SINGLE, 0.0), e.float(SINGLE, 1.0));
    let empty = e.cmp(Cmp::Eq, total, none, false);
    let total = e.select(empty, one, total);
    e.divf(one, total)
}

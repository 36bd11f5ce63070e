//! The rules: what equals a term. Each holds for every argument of the right
//! type, reads as an equation, and carries examples on which the tests run it
//! against the interpreter.
//!
//! *Exact* rules keep every bit of every result that is not NaN (a NaN stays a
//! NaN). The others round differently, by a few units in the last place of the
//! largest term.

use super::language::{Terms, Tree};
use egg::Id;
use kiln_ir::ops::contract::MatMul;
use kiln_ir::ops::elementwise::{Binary, Cast, Unary};
use kiln_ir::ops::layout::{Perm, Transpose};
use kiln_ir::ops::reduce::Reduce;
use kiln_ir::ops::source::Constant;
use kiln_ir::{BinaryFn, DType, Op, ReduceFn, Tensor, UnaryFn};

/// One rule.
pub struct Rule {
    /// Its name.
    #[cfg_attr(not(test), allow(dead_code))]
    pub name: &'static str,
    /// Whether bits stay.
    pub exact: bool,
    /// Terms that equal this one.
    pub apply: fn(&Terms, Id, &Op, &[Id]) -> Vec<Tree>,
    /// Bodies of functions `f` in which it applies.
    #[cfg_attr(not(test), allow(dead_code))]
    pub examples: &'static [&'static str],
}

macro_rules! rule {
    ($name:ident, $exact:expr, $($example:expr),+) => {
        Rule {
            name: stringify!($name),
            exact: $exact,
            apply: $name,
            examples: &[$($example),+],
        }
    };
}

/// Every rule.
pub const RULES: &[Rule] = &[
    rule!(
        merge_transposes,
        true,
        "(%x: f32[A, B, 3]) -> f32[B, 3, A] {
           %0 = transpose %x {perm = [2, 0, 1]}
           %1 = transpose %0 {perm = [2, 0, 1]}
           return %1 }"
    ),
    rule!(
        merge_reshapes,
        true,
        "(%x: f32[A, B, 4]) -> f32[A*B*2, 2] {
           %0 = reshape %x {shape = [<A>, <4*B>]}
           %1 = reshape %0 {shape = [<A*B*2>, 2]}
           return %1 }"
    ),
    rule!(
        move_after_map,
        true,
        "(%x: f32[A, B]) -> f32[B, A] {
           %0 = tanh %x
           %1 = transpose %0 {perm = [1, 0]}
           return %1 }",
        "(%x: f32[A, B]) -> f32[A*B] {
           %0 = neg %x
           %1 = reshape %0 {shape = [<A*B>]}
           return %1 }",
        "(%x: f32[A, 9]) -> f32[A, 3] {
           %0 = exp %x
           %1 = slice %0 {starts = [0, 2], sizes = [<A>, 3], steps = [1, 2]}
           return %1 }"
    ),
    rule!(
        map_after_move,
        true,
        "(%x: f32[A, B]) -> f32[B, A] {
           %0 = transpose %x {perm = [1, 0]}
           %1 = tanh %0
           return %1 }",
        "(%x: f32[1, B]) -> f32[5, B] {
           %0 = broadcast %x {shape = [5, <B>]}
           %1 = tanh %0
           return %1 }"
    ),
    rule!(
        transpose_after_binary,
        true,
        "(%x: f32[A, B], %y: f32[1, B]) -> f32[B, A] {
           %0 = transpose %x {perm = [1, 0]}
           %1 = transpose %y {perm = [1, 0]}
           %2 = sub %0, %1
           return %2 }"
    ),
    rule!(
        binary_after_transpose,
        true,
        "(%x: f32[A, B], %y: f32[A, 1]) -> f32[B, A] {
           %0 = mul %x, %y
           %1 = transpose %0 {perm = [1, 0]}
           return %1 }"
    ),
    rule!(
        matmul_reads_transposed,
        true,
        "(%x: f32[A, 3], %w: f32[B, 3]) -> f32[A, B] {
           %0 = transpose %w {perm = [1, 0]}
           %1 = matmul %x, %0 {transpose_a = false, transpose_b = false}
           return %1 }",
        "(%x: f32[2, 3, A], %w: f32[2, 3, B]) -> f32[2, A, B] {
           %0 = transpose %x {perm = [0, 2, 1]}
           %1 = matmul %0, %w {transpose_a = false, transpose_b = false}
           return %1 }"
    ),
    rule!(
        cancel_signs,
        true,
        "(%x: f32[A]) -> f32[A] {
           %0 = neg %x
           %1 = neg %0
           return %1 }",
        "(%x: f32[A], %y: f32[A]) -> f32[A] {
           %0 = neg %y
           %1 = sub %x, %0
           return %1 }",
        "(%x: f32[A], %y: f32[A]) -> f32[A] {
           %0 = neg %y
           %1 = add %x, %0
           return %1 }",
        "(%x: f32[A], %y: f32[A]) -> f32[A] {
           %0 = neg %y
           %1 = neg %x
           %2 = mul %1, %0
           return %2 }"
    ),
    rule!(
        multiply_by_minus_one,
        true,
        "(%x: f32[A]) -> f32[A] {
           %c = constant {value = f32[] (-1)}
           %0 = mul %x, %c
           return %0 }"
    ),
    rule!(
        divide_by_power_of_two,
        true,
        "(%x: f32[A]) -> f32[A] {
           %c = constant {value = f32[] (8)}
           %0 = div %x, %c
           return %0 }"
    ),
    rule!(
        narrow_after_widening,
        true,
        "(%x: f16[A]) -> f16[A] {
           %0 = cast %x {to = f32}
           %1 = cast %0 {to = f16}
           return %1 }"
    ),
    rule!(
        merge_scales,
        false,
        "(%x: f32[A]) -> f32[A] {
           %c = constant {value = f32[] (1.7)}
           %d = constant {value = f32[] (0.3)}
           %0 = mul %x, %c
           %1 = div %0, %d
           return %1 }",
        "(%x: f32[A]) -> f32[A] {
           %c = constant {value = f32[] (1.7)}
           %d = constant {value = f32[] (0.3)}
           %0 = add %x, %c
           %1 = sub %0, %d
           return %1 }"
    ),
    rule!(
        scale_moves_to_weight,
        false,
        "(%x: f32[A, 3]) -> f32[A, 2] {
           %w = constant {value = f32[3, 2] (0.1, 0.2, 0.3, -0.4, 0.5, 0.6)}
           %c = constant {value = f32[] (1.7)}
           %0 = matmul %x, %w {transpose_a = false, transpose_b = false}
           %1 = mul %0, %c
           return %1 }",
        "(%x: f32[A, 3]) -> f32[A, 2] {
           %w = constant {value = f32[3, 2] (0.1, 0.2, 0.3, -0.4, 0.5, 0.6)}
           %c = constant {value = f32[] (1.7)}
           %0 = mul %x, %c
           %1 = matmul %0, %w {transpose_a = false, transpose_b = false}
           return %1 }"
    ),
    rule!(
        scale_leaves_argument,
        false,
        "(%x: f32[A, 3], %y: f32[3, 2]) -> f32[A, 2] {
           %c = constant {value = f32[] (1.7)}
           %0 = mul %x, %c
           %1 = matmul %0, %y {transpose_a = false, transpose_b = false}
           return %1 }"
    ),
    rule!(
        products_of_one_argument,
        false,
        "(%x: f32[A, 3], %v: f32[3, B], %w: f32[3, B]) -> f32[A, B] {
           %0 = matmul %x, %v {transpose_a = false, transpose_b = false}
           %1 = matmul %x, %w {transpose_a = false, transpose_b = false}
           %2 = add %0, %1
           return %2 }"
    ),
    rule!(
        associate_products,
        false,
        "(%x: f32[A, 3], %v: f32[3, 2], %w: f32[2, B]) -> f32[A, B] {
           %0 = matmul %x, %v {transpose_a = false, transpose_b = false}
           %1 = matmul %0, %w {transpose_a = false, transpose_b = false}
           return %1 }",
        "(%x: f32[A, 3], %v: f32[3, 2], %w: f32[2, B]) -> f32[A, B] {
           %0 = matmul %v, %w {transpose_a = false, transpose_b = false}
           %1 = matmul %x, %0 {transpose_a = false, transpose_b = false}
           return %1 }"
    ),
    rule!(
        factor,
        false,
        "(%x: f32[A], %y: f32[A], %z: f32[A]) -> f32[A] {
           %0 = mul %x, %z
           %1 = mul %y, %z
           %2 = add %0, %1
           return %2 }"
    ),
    rule!(
        scale_leaves_sum,
        false,
        "(%x: f32[A, B]) -> f32[A] {
           %c = constant {value = f32[] (1.7)}
           %0 = mul %x, %c
           %1 = reduce_sum %0 {axes = [1], keep = false}
           return %1 }"
    ),
    rule!(
        small_powers,
        false,
        "(%x: f32[A]) -> f32[A] {
           %c = constant {value = f32[] (2)}
           %0 = pow %x, %c
           return %0 }"
    ),
];

/// A one-argument map: its result at a place depends on the argument there.
fn map(op: &Op) -> bool {
    matches!(op, Op::Unary(_) | Op::Cast(_))
}

/// `transpose_q(transpose_p(x)) = transpose_{q∘p}(x)`, or `x`.
fn merge_transposes(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Transpose(outer) = op else {
        return vec![];
    };
    let inner = t.terms(args[0]).filter_map(|(op, x)| match op {
        Op::Transpose(inner) => Some((outer.perm.after(&inner.perm), x[0])),
        _ => None,
    });
    inner
        .map(|(perm, x)| match perm.is_identity() {
            true => Tree::Class(x),
            false => Tree::over(Transpose { perm }, [x]),
        })
        .collect()
}

/// `reshape(reshape(x)) = reshape(x)`, or `x`.
fn merge_reshapes(t: &Terms, class: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Reshape(outer) = op else {
        return vec![];
    };
    let inner = t.terms(args[0]).filter_map(|(op, x)| match op {
        Op::Reshape(_) => Some(x[0]),
        _ => None,
    });
    inner
        .map(|x| match t.data(x).ty == t.data(class).ty {
            true => Tree::Class(x),
            false => Tree::over(outer.clone(), [x]),
        })
        .collect()
}

/// `move(f(x)) = f(move(x))` for moves that take some of the elements, once each.
fn move_after_map(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    if !matches!(op, Op::Transpose(_) | Op::Reshape(_) | Op::Slice(_)) {
        return vec![];
    }
    let maps = t.terms(args[0]).filter(|(f, _)| map(f));
    maps.map(|(f, x)| Tree::node(f.clone(), [Tree::over(op.clone(), [x[0]])]))
        .collect()
}

/// `f(move(x)) = move(f(x))` for moves that keep every element.
fn map_after_move(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    if !map(op) {
        return vec![];
    }
    let kept = |m: &Op| matches!(m, Op::Transpose(_) | Op::Reshape(_) | Op::Broadcast(_));
    let moves = t.terms(args[0]).filter(|(m, _)| kept(m));
    moves
        .map(|(m, x)| Tree::node(m.clone(), [Tree::over(op.clone(), [x[0]])]))
        .collect()
}

/// `f(transpose_p(x), transpose_p(y)) = transpose_p(f(x, y))`; a scalar is its own
/// transpose.
fn transpose_after_binary(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Binary(_) = op else { return vec![] };
    let sources = |id: Id| {
        let found = t.terms(id).filter_map(|(op, x)| match op {
            Op::Transpose(p) => Some((p.perm.clone(), x[0])),
            _ => None,
        });
        found.collect::<Vec<_>>()
    };
    let scalar = |id: Id| t.data(id).ty.rank() == 0;
    let (left, right) = (sources(args[0]), sources(args[1]));
    let mut out = vec![];
    let mut say = |perm: &Perm, x: Id, y: Id| {
        let perm = perm.clone();
        out.push(Tree::node(
            Transpose { perm },
            [Tree::over(op.clone(), [x, y])],
        ));
    };
    for (p, x) in &left {
        right
            .iter()
            .filter(|(q, _)| p == q)
            .for_each(|(_, y)| say(p, *x, *y));
        if scalar(args[1]) {
            say(p, *x, args[1]);
        }
    }
    if scalar(args[0]) {
        right.iter().for_each(|(q, y)| say(q, args[0], *y));
    }
    out
}

/// `transpose_p(f(x, y)) = f(transpose_p(x), transpose_p(y))`.
fn binary_after_transpose(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Transpose(p) = op else { return vec![] };
    let rank = p.perm.axes().len();
    let turned = |id: Id| match t.data(id).ty.rank() {
        0 => Some(Tree::Class(id)),
        r if r == rank => Some(Tree::over(p.clone(), [id])),
        _ => None,
    };
    let found = t.terms(args[0]).filter_map(|(f, xs)| match f {
        Op::Binary(_) => Some(Tree::node(f.clone(), [turned(xs[0])?, turned(xs[1])?])),
        _ => None,
    });
    found.collect()
}

/// `matmul(x, yᵀ) = matmul_t(x, y)`, and the same on the left.
fn matmul_reads_transposed(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::MatMul(m) = op else { return vec![] };
    let swapped = |id: Id| {
        let found = t.terms(id).filter_map(|(op, x)| match op {
            Op::Transpose(p) => swaps_last_two(&p.perm).then_some(x[0]),
            _ => None,
        });
        found.collect::<Vec<_>>()
    };
    let mut out = vec![];
    for y in swapped(args[1]) {
        let op = MatMul {
            transpose_b: !m.transpose_b,
            ..m.clone()
        };
        out.push(Tree::over(op, [args[0], y]));
    }
    for x in swapped(args[0]) {
        let op = MatMul {
            transpose_a: !m.transpose_a,
            ..m.clone()
        };
        out.push(Tree::over(op, [x, args[1]]));
    }
    out
}

fn swaps_last_two(p: &Perm) -> bool {
    let n = p.axes().len();
    n >= 2 && (0..n - 2).all(|i| p.axes()[i] == i) && p.axes()[n - 2..] == [n - 1, n - 2]
}

/// What `−x` is of.
fn negated(t: &Terms, id: Id) -> Vec<Id> {
    let found = t.terms(id).filter_map(|(op, x)| match op {
        Op::Unary(u) if u.f == UnaryFn::Neg => Some(x[0]),
        _ => None,
    });
    found.collect()
}

/// `−(−x) = x`, `x − (−y) = x + y`, `x + (−y) = x − y`, `(−x)·(−y) = x·y`.
fn cancel_signs(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let binary = |f, x, y| Tree::over(Binary { f }, [x, y]);
    match op {
        Op::Unary(u) if u.f == UnaryFn::Neg => {
            negated(t, args[0]).into_iter().map(Tree::Class).collect()
        }
        Op::Binary(b) => {
            let right = negated(t, args[1]);
            let turned = match b.f {
                BinaryFn::Sub => BinaryFn::Add,
                BinaryFn::Add => BinaryFn::Sub,
                BinaryFn::Mul | BinaryFn::Div => {
                    let left = negated(t, args[0]);
                    let pairs = left
                        .iter()
                        .flat_map(|&x| right.iter().map(move |&y| (x, y)));
                    return pairs.map(|(x, y)| binary(b.f, x, y)).collect();
                }
                _ => return vec![],
            };
            right
                .into_iter()
                .map(|y| binary(turned, args[0], y))
                .collect()
        }
        _ => vec![],
    }
}

/// The number that a class is full of, where it broadcasts away: multiplying by it
/// does not change a shape.
fn scalar_of(t: &Terms, id: Id) -> Option<f64> {
    let data = t.data(id);
    data.full_of
        .filter(|_| data.ty.elements().as_const() == Some(1) && data.ty.rank() == 0)
}

/// `x·c` or `c·x`: both.
fn scaled(t: &Terms, op: &Op, args: &[Id]) -> Option<(Id, f64)> {
    let Op::Binary(b) = op else { return None };
    match (b.f, scalar_of(t, args[0]), scalar_of(t, args[1])) {
        (BinaryFn::Mul, _, Some(c)) => Some((args[0], c)),
        (BinaryFn::Mul, Some(c), None) => Some((args[1], c)),
        (BinaryFn::Div, _, Some(c)) if c != 0.0 => Some((args[0], 1.0 / c)),
        _ => None,
    }
}

fn constant(dtype: DType, value: f64) -> Tree {
    let value = Tensor::scalar_f64(dtype, value);
    Tree::node(Constant { value }, [])
}

/// A scalar of a class's dtype, if the number is one there.
fn scalar_like(t: &Terms, id: Id, value: f64) -> Option<Tree> {
    let dtype = t.data(id).ty.dtype;
    let stored = Tensor::scalar_f64(dtype, value).get_f64(0);
    (stored.is_finite() && stored.is_normal()).then(|| constant(dtype, value))
}

/// `x·(−1) = −x`.
fn multiply_by_minus_one(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    match (op, scaled(t, op, args)) {
        (Op::Binary(b), Some((x, -1.0))) if b.f == BinaryFn::Mul => {
            vec![Tree::over(Unary { f: UnaryFn::Neg }, [x])]
        }
        _ => vec![],
    }
}

/// `x / 2ⁿ = x · 2⁻ⁿ`: both round the same number.
fn divide_by_power_of_two(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Binary(Binary { f: BinaryFn::Div }) = op else {
        return vec![];
    };
    let Some(c) = scalar_of(t, args[1]) else {
        return vec![];
    };
    let power = c.is_normal() && c.to_bits() << 12 == 0;
    match scalar_like(t, args[1], 1.0 / c) {
        Some(r) if power => vec![Tree::node(
            Binary { f: BinaryFn::Mul },
            [Tree::Class(args[0]), r],
        )],
        _ => vec![],
    }
}

/// `narrow(wide(x)) = x` where the wide type holds every value of x's.
fn narrow_after_widening(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Cast(Cast { to }) = op else {
        return vec![];
    };
    let wide = t.data(args[0]).ty.dtype;
    let holds = match to {
        DType::F16 | DType::BF16 => matches!(wide, DType::F32 | DType::F64),
        DType::F32 => wide == DType::F64,
        _ => false,
    };
    let sources = t.terms(args[0]).filter_map(|(op, x)| match op {
        Op::Cast(_) if t.data(x[0]).ty.dtype == *to => Some(Tree::Class(x[0])),
        _ => None,
    });
    sources.filter(|_| holds).collect()
}

/// `(x·c)·d = x·(c·d)`, and the same for sums.
fn merge_scales(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let mut out = vec![];
    if let Some((inner, d)) = scaled(t, op, args) {
        for (op, args) in t.terms(inner) {
            if let Some((x, c)) = scaled(t, op, args)
                && let Some(both) = scalar_like(t, x, c * d)
            {
                out.push(Tree::node(
                    Binary { f: BinaryFn::Mul },
                    [Tree::Class(x), both],
                ));
            }
        }
    }
    if let Some((inner, d)) = shifted(t, op, args) {
        for (op, args) in t.terms(inner) {
            if let Some((x, c)) = shifted(t, op, args)
                && let Some(both) = scalar_like(t, x, c + d)
            {
                out.push(Tree::node(
                    Binary { f: BinaryFn::Add },
                    [Tree::Class(x), both],
                ));
            }
        }
    }
    out
}

/// `x + c`, `c + x` or `x − c`.
fn shifted(t: &Terms, op: &Op, args: &[Id]) -> Option<(Id, f64)> {
    let Op::Binary(b) = op else { return None };
    match (b.f, scalar_of(t, args[0]), scalar_of(t, args[1])) {
        (BinaryFn::Add, _, Some(c)) => Some((args[0], c)),
        (BinaryFn::Add, Some(c), None) => Some((args[1], c)),
        (BinaryFn::Sub, _, Some(c)) => Some((args[0], -c)),
        _ => None,
    }
}

fn mul(x: Tree, y: Tree) -> Tree {
    Tree::node(Binary { f: BinaryFn::Mul }, [x, y])
}

/// `(x·W)·c = x·(W·c)` and `(x·c)·W = x·(W·c)` for a weight W.
fn scale_moves_to_weight(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let mut out = vec![];
    let weight = |w: Id| t.data(w).constant;
    if let Some((inner, c)) = scaled(t, op, args) {
        for (op, args) in t.terms(inner) {
            if let Op::MatMul(m) = op
                && weight(args[1])
                && m.out.is_none()
                && let Some(c) = scalar_like(t, args[1], c)
            {
                let w = mul(Tree::Class(args[1]), c);
                out.push(Tree::node(m.clone(), [Tree::Class(args[0]), w]));
            }
        }
    }
    if let Op::MatMul(m) = op
        && weight(args[1])
        && m.out.is_none()
    {
        for (inner, xs) in t.terms(args[0]) {
            if let Some((x, c)) = scaled(t, inner, xs)
                && let Some(c) = scalar_like(t, args[1], c)
            {
                let w = mul(Tree::Class(args[1]), c);
                out.push(Tree::node(m.clone(), [Tree::Class(x), w]));
            }
        }
    }
    out
}

/// `(x·c)·Y = (x·Y)·c`: the cheaper side is scaled.
fn scale_leaves_argument(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::MatMul(m) = op else { return vec![] };
    if m.out.is_some() {
        return vec![];
    }
    let mut out = vec![];
    for side in 0..2 {
        for (inner, xs) in t.terms(args[side]) {
            if let Some((x, c)) = scaled(t, inner, xs)
                && let Some(c) = scalar_like(t, x, c)
            {
                let mut plain = [args[0], args[1]];
                plain[side] = x;
                out.push(mul(Tree::over(m.clone(), plain), c));
            }
        }
    }
    out
}

/// `x·V + x·W = x·(V + W)`.
fn products_of_one_argument(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Binary(Binary { f: BinaryFn::Add }) = op else {
        return vec![];
    };
    let mut out = vec![];
    for (m, left) in t.terms(args[0]) {
        for (n, right) in t.terms(args[1]) {
            let (Op::MatMul(a), true) = (m, m == n) else {
                continue;
            };
            let same = t.find(left[0]) == t.find(right[0]);
            if same && a.out.is_none() && t.data(left[1]).ty == t.data(right[1]).ty {
                let sum = Tree::over(Binary { f: BinaryFn::Add }, [left[1], right[1]]);
                out.push(Tree::node(a.clone(), [Tree::Class(left[0]), sum]));
            }
        }
    }
    out
}

/// `(x·V)·W = x·(V·W)` and back, for matrices V and W.
fn associate_products(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let plain = |op: &Op| matches!(op, Op::MatMul(m) if !m.transpose_a && !m.transpose_b && m.out.is_none());
    let matrix = |id: Id| t.data(id).ty.rank() == 2;
    if !plain(op) {
        return vec![];
    }
    let mut out = vec![];
    for (inner, xs) in t.terms(args[0]) {
        if plain(inner) && matrix(xs[1]) && matrix(args[1]) {
            let right = Tree::over(op.clone(), [xs[1], args[1]]);
            out.push(Tree::node(op.clone(), [Tree::Class(xs[0]), right]));
        }
    }
    for (inner, ws) in t.terms(args[1]) {
        if plain(inner) && matrix(ws[0]) && matrix(ws[1]) {
            let left = Tree::over(op.clone(), [args[0], ws[0]]);
            out.push(Tree::node(op.clone(), [left, Tree::Class(ws[1])]));
        }
    }
    out
}

/// `x·z + y·z = (x + y)·z`, whichever side z is on; not for scalars, which
/// [`merge_scales`] serves.
fn factor(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Binary(sum) = op else { return vec![] };
    if !matches!(sum.f, BinaryFn::Add | BinaryFn::Sub) {
        return vec![];
    }
    let products = |id: Id| {
        let found = t.terms(id).filter_map(|(op, xs)| match op {
            Op::Binary(b) if b.f == BinaryFn::Mul => Some((t.find(xs[0]), t.find(xs[1]))),
            _ => None,
        });
        found.collect::<Vec<_>>()
    };
    let mut out = vec![];
    for (a, b) in products(args[0]) {
        for (c, d) in products(args[1]) {
            for (x, z) in [(a, b), (b, a)] {
                for (y, w) in [(c, d), (d, c)] {
                    if z == w && t.data(x).ty == t.data(y).ty {
                        let inner = Tree::over(sum.clone(), [x, y]);
                        out.push(mul(inner, Tree::Class(z)));
                    }
                }
            }
        }
    }
    out
}

/// `Σ x·c = (Σ x)·c`.
fn scale_leaves_sum(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Reduce(r) = op else { return vec![] };
    if !matches!(r.f, ReduceFn::Sum | ReduceFn::Mean) {
        return vec![];
    }
    let mut out = vec![];
    for (inner, xs) in t.terms(args[0]) {
        if let Some((x, c)) = scaled(t, inner, xs)
            && let Some(c) = scalar_like(t, x, c)
        {
            out.push(mul(Tree::over(Reduce { ..r.clone() }, [x]), c));
        }
    }
    out
}

/// `x² = x·x`, `x^½ = √x`.
fn small_powers(t: &Terms, _: Id, op: &Op, args: &[Id]) -> Vec<Tree> {
    let Op::Binary(Binary { f: BinaryFn::Pow }) = op else {
        return vec![];
    };
    match scalar_of(t, args[1]) {
        Some(2.0) => vec![Tree::over(Binary { f: BinaryFn::Mul }, [args[0], args[0]])],
        Some(0.5) => vec![Tree::over(Unary { f: UnaryFn::Sqrt }, [args[0]])],
        _ => vec![],
    }
}

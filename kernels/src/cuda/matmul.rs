//! Contractions as sums of products.

use super::gemm::{self, Source, coordinates};
use super::halves::{self, Factors};
use super::nest::divide;
use super::{
    GpuKernel, Unit, blocks, blocks_element, dim, groups, skinny, tail, thin, tiles, words,
};
use crate::lower::ExprCx;
use crate::matmul::{Columns, MatMulSpec, advance};
use crate::{LoopNest, Size};
use kiln_codegen::ptx::{B32, F32, Sum};
use kiln_codegen::{Emitter, GpuTarget, Val};
use kiln_ir::{DType, Dim};

pub(super) fn emit(spec: &MatMulSpec, name: &str, target: &GpuTarget) -> Vec<GpuKernel> {
    let axes = spec.batch.iter().copied().chain([spec.m, spec.n]).collect();
    let out = (&spec.out, spec.value);
    let nest = tail::nest(&spec.exprs, &spec.args, spec.params, axes, out);
    if let Some(forms) = blocks::emit(spec, &nest, name, target) {
        return forms;
    }
    // Those by columns have forms of their own for few rows.
    let few = match halves::serves(spec, target) {
        Some(_) => None,
        None => skinny::emit(spec, &nest, name, target),
    };
    if let Some(always) = few.as_ref().filter(|few| few.when.is_empty()) {
        return vec![always.clone()];
    }
    let many = many(spec, &nest, name, target);
    few.into_iter().chain(many).collect()
}

/// The forms for any number of rows.
fn many(spec: &MatMulSpec, nest: &LoopNest, name: &str, target: &GpuTarget) -> Vec<GpuKernel> {
    match (halves::serves(spec, target), words::serves(spec)) {
        (Some(Factors::Floats(of)), _) => by_columns::<F32>(spec, of, nest, name, target),
        (Some(Factors::Bytes(of)), _) => by_columns::<B32>(spec, of, nest, name, target),
        (None, Some(of)) => vec![GpuKernel {
            unit: Unit::Mma,
            ..words::emit(spec, of, nest, name, target)
        }],
        (None, None) => vec![gemm::emit(spec, nest, name, target)],
    }
}

/// The PTX version from which `wgmma` multiplies bytes with a sign by bytes without.
const MIXED: (u32, u32) = (8, 4);

/// The PTX version from which `mma.sync` multiplies f8.
pub(super) const EIGHTS: (u32, u32) = (8, 4);

/// The forms of a contraction on tensor cores whose sides have neighbours along k together.
fn by_columns<T: Sum>(
    spec: &MatMulSpec,
    of: T::Factors,
    nest: &LoopNest,
    name: &str,
    target: &GpuTarget,
) -> Vec<GpuKernel> {
    let mut forms = thin::emit::<T>(spec, of, nest, name, target);
    if forms.last().is_some_and(|k| k.when.is_empty()) {
        return forms;
    }
    match target.is_hopper() {
        true => {
            let tiles = tiles::emit::<T>(spec, of, nest, name, target);
            let groups = GpuKernel {
                unit: Unit::Wgmma,
                ..groups::emit::<T>(spec, of, nest, name, target)
            };
            let [a, b] = T::factors(of);
            let mixed = T::SUM == B32::SUM && a != b;
            forms.extend(tiles.into_iter().chain([groups]).map(|k| GpuKernel {
                ptx: if mixed { MIXED } else { k.ptx },
                ..k
            }));
        }
        false => forms.push(GpuKernel {
            unit: Unit::Mma,
            ..halves::emit::<T>(spec, of, nest, name, target)
        }),
    }
    forms
}

impl MatMulSpec {
    pub(super) fn batch_extents(&self, e: &mut Emitter, cx: &ExprCx) -> Vec<Val> {
        self.batch.iter().map(|&s| cx.size(e, s)).collect()
    }

    /// The coordinates of a row: of each batch axis, then m.
    fn row_point(&self, e: &mut Emitter, cx: &ExprCx, batch: Val, row: Val) -> Vec<Val> {
        let extents = self.batch_extents(e, cx);
        if !self.shared() {
            let mut point = coordinates(e, batch, &extents);
            point.push(row);
            return point;
        }
        if extents.is_empty() {
            return vec![row];
        }
        let m = cx.size(e, self.m);
        let (rest, m) = divide(e, row, m, self.m.as_const());
        let mut point = coordinates(e, rest, &extents);
        point.push(m);
        point
    }
}

impl Source for MatMulSpec {
    fn types(&self) -> [DType; 3] {
        [self.args[0], self.args[1], self.acc]
    }

    fn dims(&self) -> [Dim; 4] {
        let batch = self.batch.iter().fold(Dim::ONE, |n, &s| n * dim(s));
        let [m, n, k] = [self.m, self.n, self.k].map(dim);
        match self.shared() {
            true => [batch * m, n, k, Dim::ONE],
            false => [m, n, k, batch],
        }
    }

    fn extents(&self, e: &mut Emitter, cx: &ExprCx) -> [Val; 4] {
        let one = e.i64(1);
        let batch = self.batch_extents(e, cx);
        let batch = batch.iter().fold(one, |n, &s| e.mul(n, s));
        let [m, n, k] = [self.m, self.n, self.k].map(|s| cx.size(e, s));
        match self.shared() {
            true => [e.mul(batch, m), n, k, one],
            false => [m, n, k, batch],
        }
    }

    fn width(&self) -> i64 {
        1
    }

    fn row(&self, e: &mut Emitter, cx: &ExprCx, batch: Val, row: Val) -> Vec<Val> {
        let zero = e.i64(0);
        let at = self.row_point(e, cx, batch, row);
        let offset = (at.iter().zip(&self.a)).fold(zero, |sum, (&c, &s)| advance(e, cx, sum, c, s));
        vec![offset]
    }

    fn product(&self, e: &mut Emitter, cx: &ExprCx, k: Val) -> Vec<Val> {
        let zero = e.i64(0);
        vec![advance(e, cx, zero, k, self.a[self.batch.len() + 1])]
    }

    fn a(
        &self,
        e: &mut Emitter,
        _: &ExprCx,
        _: Val,
        row: &[Val],
        product: &[Val],
    ) -> (Val, Option<Val>) {
        (e.add(row[0], product[0]), None)
    }

    fn around(&self, _: &mut Emitter, _: &ExprCx) -> Option<Val> {
        None
    }

    fn b(&self, e: &mut Emitter, cx: &ExprCx, batch: Val, k: Val, column: Val) -> Val {
        let mut base = e.i64(0);
        if !self.shared() {
            let extents = self.batch_extents(e, cx);
            let at = coordinates(e, batch, &extents);
            for (&c, &s) in at.iter().zip(&self.b_batch) {
                base = advance(e, cx, base, c, s);
            }
        }
        let group = match (&self.b, self.words()) {
            (Columns::Strided { row, column: step }, _) => {
                let at = advance(e, cx, base, k, *row);
                return advance(e, cx, at, column, *step);
            }
            (Columns::Grouped, Some(words)) => words.group(),
            (Columns::Grouped | Columns::Packed | Columns::Blocks(_), _) => 1,
        };
        let all = cx.size(e, self.k);
        let at = panel_offset(e, (k, all), column, (self.nr, group));
        e.add(base, at)
    }

    fn b_made(&self, e: &mut Emitter, cx: &ExprCx, exists: Val, place: (Val, Val)) -> Option<Val> {
        match &self.b {
            Columns::Blocks(of) => Some(blocks_element::element(e, cx, self, of, exists, place)),
            Columns::Packed | Columns::Grouped | Columns::Strided { .. } => None,
        }
    }

    fn turned(&self) -> [bool; 2] {
        let b = match self.b {
            Columns::Strided { row, column } => row == Size::ONE && column != Size::ONE,
            Columns::Blocks(_) => true,
            Columns::Packed | Columns::Grouped => false,
        };
        [self.a[self.batch.len()] == Size::ONE, b]
    }

    fn point(&self, e: &mut Emitter, cx: &ExprCx, batch: Val, row: Val, column: Val) -> Vec<Val> {
        let mut point = self.row_point(e, cx, batch, row);
        point.push(column);
        point
    }
}

/// The element of product `k` of `all` and a column in panels `[n/nr][k/group][nr][group]`.
pub(super) fn panel_offset(
    e: &mut Emitter,
    (k, all): (Val, Val),
    column: Val,
    (nr, group): (i64, i64),
) -> Val {
    let nr = e.i64(nr);
    let panel = e.op2("arith.divui", column, nr);
    let within = e.op2("arith.remui", column, nr);
    let (less, size) = (e.i64(group - 1), e.i64(group));
    let up = e.add(all, less);
    let groups = e.op2("arith.divui", up, size);
    let of = e.op2("arith.divui", k, size);
    let part = e.op2("arith.remui", k, size);
    let row = e.mul(panel, groups);
    let row = e.add(row, of);
    let at = e.mul(row, nr);
    let at = e.add(at, within);
    let at = e.mul(at, size);
    e.add(at, part)
}

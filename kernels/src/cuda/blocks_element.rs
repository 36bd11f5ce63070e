//! Weights of a few bits, quantized in blocks, one by one: for products that tensor cores do
//! not serve, and for the ends of those that they do.

use crate::lower::{ExprCx, memory_elem, widen};
use crate::matmul::{Blocks, MatMulSpec};
use kiln_codegen::{Elem, Emitter, Ty, Val};
use kiln_ir::DType;

/// Element `k` of a column as sums have it, or 0 where it does not exist.
pub(super) fn element(
    e: &mut Emitter,
    cx: &ExprCx,
    spec: &MatMulSpec,
    blocks: &Blocks,
    exists: Val,
    (k, column): (Val, Val),
) -> Val {
    let (bits, size) = (i64::from(blocks.bits), e.i64(blocks.size));
    let count = cx.size(e, blocks.count);
    let start = e.mul(column, count);
    let own = e.i64(blocks.size * bits / 8);
    let byte = e.mul(start, own);
    let each = e.i64(8 / bits);
    let within = e.op2("arith.divui", k, each);
    let byte = e.add(byte, within);
    let from = e.offset(cx.args[1], byte, Elem::I8);
    let q = e.load_where(exists, from, Ty::scalar(Elem::I8));
    let word = Ty::scalar(Elem::I32);
    let q = e.cast(q, Elem::I32, true, true);
    let place = e.op2("arith.remui", k, each);
    let width = e.i64(bits);
    let down = e.mul(place, width);
    let down = e.cast(down, Elem::I32, true, true);
    let q = e.op2("arith.shrui", q, down);
    let mask = e.int(word, (1 << bits) - 1);
    let q = e.op2("arith.andi", q, mask);
    let block = e.op2("arith.divui", k, size);
    let block = e.add(start, block);
    let zero = match blocks.zeros {
        false => e.int(word, 1 << (bits - 1)),
        true => {
            let from = e.offset(cx.args[3], block, Elem::I8);
            let z = e.load_where(exists, from, Ty::scalar(Elem::I8));
            let z = e.cast(z, Elem::I32, true, true);
            e.op2("arith.andi", z, mask)
        }
    };
    let q = e.sub(q, zero);
    let q = e.cast(q, Elem::F32, false, false);
    let scales = spec.args[2];
    let from = e.offset(cx.args[2], block, memory_elem(scales));
    let s = e.load_where(exists, from, Ty::scalar(memory_elem(scales)));
    let s = widen(e, s, scales);
    let w = e.mul(q, s);
    match spec.args[0] {
        DType::F32 => w,
        t => {
            let w = crate::lower::convert(e, w, DType::F32, t);
            widen(e, w, t)
        }
    }
}

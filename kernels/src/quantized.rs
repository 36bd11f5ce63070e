//! Rounding to bytes in few instructions: what every quantize op ends in.

use crate::expr::{ExprId, Exprs, Node};
use kiln_codegen::emit::Cmp;
use kiln_codegen::{Elem, Emitter, Val};
use kiln_ir::{BinaryFn, DType, UnaryFn};

/// 1.5·2²³: added to a small f32, the sum's last bit counts ones, and the sum is rounded
/// to nearest even as every sum is.
const MAGIC: f32 = 12_582_912.0;

/// If `id` is `round(x)` or `round(x) + z` in f32, with a whole number `z` that a byte
/// holds: `x` and `z`.
fn rounded(exprs: &Exprs, id: ExprId) -> Option<(ExprId, i64)> {
    if exprs.dtype(id) != DType::F32 {
        return None;
    }
    match exprs.node(id) {
        Node::Unary(UnaryFn::Round, x) => Some((*x, 0)),
        Node::Binary(BinaryFn::Add, sum, z) => {
            let (Node::Unary(UnaryFn::Round, x), Node::Const { bits, .. }) =
                (exprs.node(*sum), exprs.node(*z))
            else {
                return None;
            };
            let z = f32::from_bits(*bits as u32);
            let held = z.fract() == 0.0 && (-128.0..=255.0).contains(&z);
            held.then_some((*x, z as i64))
        }
        _ => None,
    }
}

/// If `id` is a byte that [`rounded`] knows: its type, `x` and `z`.
pub(crate) fn byte(exprs: &Exprs, id: ExprId) -> Option<(DType, ExprId, i64)> {
    match exprs.node(id) {
        Node::Cast(to @ (DType::U8 | DType::I8), x) => rounded(exprs, *x).map(|(x, z)| (*to, x, z)),
        _ => None,
    }
}

/// `round(x) + z` in i32, saturated to a byte's range; NaN gives 0. It is clamped first,
/// to bounds that rounding keeps.
pub(crate) fn to_byte_range(e: &mut Emitter, x: Val, z: i64, to: DType) -> Val {
    let (low, high) = match to {
        DType::U8 => (0, 255),
        _ => (-128, 127),
    };
    let (least, most) = (
        e.float(x.ty, (low - z) as f64),
        e.float(x.ty, (high - z) as f64),
    );
    // A comparison with NaN fails, which leaves the least.
    let number = match low {
        0 => x,
        _ => {
            let (same, none) = (e.cmp(Cmp::Eq, x, x, false), e.float(x.ty, -z as f64));
            e.select(same, x, none)
        }
    };
    let above = e.cmp(Cmp::Gt, number, least, false);
    let held = e.select(above, number, least);
    let below = e.cmp(Cmp::Lt, held, most, false);
    let held = e.select(below, held, most);
    let magic = e.float(x.ty, MAGIC as f64);
    let sum = e.add(held, magic);
    let bits = e.bitcast(sum, Elem::I32);
    let off = e.int(bits.ty, i64::from(MAGIC.to_bits()) - z);
    e.sub(bits, off)
}

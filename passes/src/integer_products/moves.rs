//! Dequantize ops move behind what only moves elements or chooses the largest, and
//! quantize ops before it: bytes flow from product to product, and what a network says
//! in between (pools, concatenations, shuffles of channels) works on bytes. Every rule
//! keeps each element's bits.

use super::{dequantize_of, quantized};
use crate::canonicalize::splat;
use kiln_ir::ops::composite::{Dequantize, Quantize};
use kiln_ir::ops::layout::{Pad, PadMode};
use kiln_ir::ops::reduce::Reduce;
use kiln_ir::ops::window::Unfold;
use kiln_ir::{Builder, DType, Dim, Graph, NodeId, Op, ReduceFn, Tri, TypeError, Value};

/// Dequantize with one scale, and its arguments.
fn plain(graph: &Graph, v: Value) -> Option<Vec<Value>> {
    let (_, args) = dequantize_of(graph, v)?;
    let whole = args[1..].iter().all(|&a| graph.ty(a).rank() == 0);
    let byte = super::is_byte(graph.ty(args[0]).dtype);
    (whole && byte).then(|| args.to_vec())
}

const WHOLE: Dequantize = Dequantize { axis: 0, block: 0 };

/// `move(dequantize(x))` as `dequantize(move(x))`.
pub(super) fn move_first(b: &mut Builder, n: NodeId) -> Result<Option<Value>, TypeError> {
    let node = b.graph.node(n).clone();
    let moves = matches!(node.op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_));
    let Some(mut args) = moves.then(|| plain(b.graph, node.args[0])).flatten() else {
        return Ok(None);
    };
    args[0] = b.one(node.op, &[args[0]])?;
    Ok(Some(b.one(WHOLE, &args)?))
}

/// `concat(dequantize(x).., )` of one scale as `dequantize(concat(x..))`.
pub(super) fn concat_first(b: &mut Builder, n: NodeId) -> Result<Option<Value>, TypeError> {
    let node = b.graph.node(n).clone();
    if !matches!(node.op, Op::Concat(_)) {
        return Ok(None);
    }
    let all: Option<Vec<Vec<Value>>> = node.args.iter().map(|&a| plain(b.graph, a)).collect();
    let Some(all) = all else { return Ok(None) };
    let same = |a: &Vec<Value>| {
        a[1..] == all[0][1..] && b.graph.ty(a[0]).dtype == b.graph.ty(all[0][0]).dtype
    };
    if all.is_empty() || !all.iter().all(same) {
        return Ok(None);
    }
    let bytes: Vec<Value> = all.iter().map(|a| a[0]).collect();
    let mut args = all[0].clone();
    args[0] = b.one(node.op, &bytes)?;
    Ok(Some(b.one(WHOLE, &args)?))
}

/// `quantize(concat(x..))` as `concat(quantize(x)..)`, if some `x` is bytes: the others
/// are then quantized by what makes them.
pub(super) fn quantize_before_concat(
    b: &mut Builder,
    n: NodeId,
) -> Result<Option<Value>, TypeError> {
    let node = b.graph.node(n).clone();
    let Op::Quantize(q @ Quantize { block: 0, .. }) = &node.op else {
        return Ok(None);
    };
    let whole = node.args[1..].iter().all(|&a| b.graph.ty(a).rank() == 0);
    let (concat, parts) = match b.graph.producer_op(node.args[0]) {
        Some((op @ Op::Concat(_), args)) => (op.clone(), args.to_vec()),
        _ => return Ok(None),
    };
    let some = parts.iter().any(|&p| plain(b.graph, p).is_some());
    if !whole || !some || !super::is_byte(q.to) {
        return Ok(None);
    }
    let mut bytes = vec![];
    for part in parts {
        let mut args = node.args.clone();
        args[0] = part;
        bytes.push(quantized(b, q, &args)?);
    }
    Ok(Some(b.one(concat, &bytes)?))
}

/// The largest of windows, of bytes: a scale above 0 keeps the order.
pub(super) fn pool_first(b: &mut Builder, n: NodeId) -> Result<Option<Value>, TypeError> {
    let node = b.graph.node(n).clone();
    let Op::Reduce(Reduce {
        f: ReduceFn::Max,
        axes,
        ..
    }) = &node.op
    else {
        return Ok(None);
    };
    // From the windows back to what they look at.
    let (mut at, mut windows) = (node.args[0], vec![]);
    while let Some((Op::Unfold(u), args)) = b.graph.producer_op(at) {
        windows.push(u.clone());
        at = args[0];
    }
    if !windows.iter().all(|u| axes.contains(&(u.axis + 1))) {
        return Ok(None);
    }
    let pad = match b.graph.producer_op(at) {
        Some((Op::Pad(p), args)) => {
            let (p, from, around) = (p.clone(), args[0], args[1]);
            let lowest = splat(b.graph, around) == Some(f64::NEG_INFINITY);
            if p.mode != PadMode::Constant || !lowest || !windows_reach(&p, &windows) {
                return Ok(None);
            }
            at = from;
            Some(p)
        }
        _ => None,
    };
    let Some(mut args) = plain(b.graph, at) else {
        return Ok(None);
    };
    if splat(b.graph, args[1]).is_none_or(|s| s <= 0.0) {
        return Ok(None);
    }
    let dtype = b.ty(args[0]).dtype;
    let mut x = args[0];
    if let Some(pad) = pad {
        let lowest = b.scalar(dtype, if dtype == DType::I8 { -128.0 } else { 0.0 })?;
        x = b.one(pad, &[x, lowest])?;
    }
    for u in windows.into_iter().rev() {
        x = b.one(u, &[x])?;
    }
    args[0] = b.one(node.op, &[x])?;
    Ok(Some(b.one(WHOLE, &args)?))
}

/// Whether every window surely holds an element that is not padding: the least byte is
/// no more than any other then. Windows are listed from the last axis on.
fn windows_reach(pad: &Pad, windows: &[Unfold]) -> bool {
    let mut over: Vec<Option<&Unfold>> = vec![None; pad.lo.len()];
    let mut before = None;
    for (i, u) in windows.iter().rev().enumerate() {
        // Each one before this, of an axis before, has put an axis of places in front.
        let ascends = before.is_none_or(|b| u.axis > b + 1);
        before = Some(u.axis);
        match over.get_mut(u.axis - i.min(u.axis)) {
            Some(slot) if ascends => *slot = Some(u),
            _ => return false,
        }
    }
    (0..pad.lo.len()).all(|i| {
        let none = |d: &Dim| *d == Dim::ZERO;
        let below = |d: &Dim, size: usize| d.le(&Dim::from(size - 1)) == Tri::Yes;
        match over[i] {
            _ if none(&pad.lo[i]) && none(&pad.hi[i]) => true,
            Some(u) if u.dilation == 1 => below(&pad.lo[i], u.size) && below(&pad.hi[i], u.size),
            _ => false,
        }
    })
}
